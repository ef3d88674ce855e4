"""The record of a run as a page of tables."""

from typing import Any

from lib.report.scaling import PUBLISHED, SOURCE

from bench.plan import ACCURACY_TARGET, CUDA_SECTIONS, NAMES, SECTIONS, name_of
from bench.ratios import Race, Spread, fractions, race, race_verdict, ratios, spread, verdict

Record = dict[str, Any]
FLOOR = "parts.convolutions"
NOTES = {
    "ceiling": "The fastest of several sizes, with as many threads as everything else. bf16 is measured where ours "
    "computes in it.",
    "data": "From uint8 pictures in memory to normalized fp32 views, the same recipe for all. Workers as below. Ours "
    "makes one view after the other here; in a step each view's thread makes it.",
    "step": "Views, forward of each view, loss, backward, optimizer; the same encoder for all, the peers' of torch's "
    "own convolutions. Ours computes in the machine's precision, the peers in fp32 as it comes, on a GPU tf32. "
    "The share is of the matrix products' ceiling in the arm's own precision, by the FLOPs of convolutions and "
    "matrix products, those with padding included. The convolutions alone are no training: each of a step's, "
    "forward and backward, without anything between them.",
    "parts": "The same step with one thing done otherwise: a ratio above 1 is what our way gains. The last three of "
    "SimCLR are other ways to train: below 1 is what they would gain; a compiled encoder has torch's own "
    "convolutions, too. Where a training runs on each processor, the time is that in which any of them does a "
    "step, and their memory is with the workers. A step of CPC is the mean of the first and the last epoch's.",
    "systems": "Each variant that trains, by itself, with preset `all`, its own encoder and batch: the mean of a "
    "step in its first epoch and one in its last, which differ where layers learn in turn. An epoch is that "
    "of CIFAR-10's training images without a look at the neighbours; what learns from labels leaves the "
    "validation images out. The settings are in the JSON file beside this page.",
    "memory": "Random unit rows, and a large batch; a single cold call of the two that have no peer. What counts here "
    "is the memory, torch itself included.",
    "embed": "One pass over all images without augmentation, and nearest neighbours with k 200.",
    "probe": "Two ways to a linear evaluation: ours embeds once and fits a grid of settings, the recipe trains one "
    "layer for 100 epochs through the frozen encoder; its steps are timed and multiplied.",
    "pipeline": "In a fresh clone: images, trainings, probes, planes and tables of scikit-learn's digits, with DVC. "
    "Memory is that of the largest process.",
    "tsne": "Ours is scikit-learn's on one thread, which makes it repeatable; beside it the same on all threads.",
}


def document(record: Record) -> str:
    """The whole page, in Markdown."""
    parts = ["# Benchmark", *_head(record), *_summary(record)]
    on_gpu = bool(record["machine"].get("gpu"))
    for section, heading in SECTIONS.items():
        if on_gpu and section not in CUDA_SECTIONS:
            continue
        if section == "accuracy":
            parts += [f"## {heading}", *_accuracy(record["accuracy"])]
            continue
        found = [row for row in record["rows"] if row["section"] == section]
        parts += [f"## {heading}"]
        if not found:
            parts += ["Not run."]
        elif section == "ceiling":
            parts += [NOTES[section], _ceiling_table(found[0])]
        elif section == "systems":
            parts += [NOTES[section], _systems_table(found, on_gpu)]
        else:
            parts += [NOTES[section], *(_published() if on_gpu else []), *(_row_table(row, record) for row in found)]
    return "\n\n".join([*parts, *_workers(record["workers"])]) + "\n"


def _published() -> list[str]:
    rates = ", ".join(f"{speed.images_per_second:,.0f} images/s with {speed.encoder}" for speed in PUBLISHED)
    return [f"Published, on an {PUBLISHED[0].device}: {rates} ({SOURCE})."]


def _head(record: Record) -> list[str]:
    machine, lines = record["machine"], []
    if record["quick"]:
        lines.append("**A quick run with tiny sizes, to see that everything works. Its numbers mean nothing.**")
    elif not record["whole"]:
        lines.append("**A part of the benchmark, or one that was interrupted.**")
    if not machine["quiet"] or not all(run["quiet"] for run in record["before"]):
        loads = [machine["load"], *(run["load"] for run in record["before"])]
        lines.append(
            f"**The machine was not quiet: {max(loads)} running processes on {machine['processors']} "
            "processors over the minute before. The numbers are not to be relied on.**"
        )
    flags = ", ".join(machine["flags"]) or "none of those looked for"
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines.append(
        "\n".join(
            [
                f"- {record['date']}, commit {record['commit']}",
                f"- {machine['processor']} ({machine['family']}), {machine['used']} of {machine['processors']} processors, "
                f"{machine['memory_gib']} GiB, {machine['system']}; flags: {flags}",
                *([f"- {machine['gpu']}: ours and the peers compute there"] if machine.get("gpu") else []),
                f"- threads: {machine['threads']}; load before the start: {machine['load']}; ours in {machine['precision']}"
                f"{', CUDA graphs' if machine.get('compile') == 'graphs' else ''}",
                f"- {versions}",
                "- pictures: random pixels in CIFAR-10's sizes, but for the time to accuracy",
                *(
                    f"- measured before, {run['date']}, commit {run['commit']}, load before the start {run['load']}: "
                    f"{', '.join(SECTIONS[name] for name in run['sections'])}"
                    for run in record["before"]
                ),
                f"- repetitions: {_repetitions(record)}; in each all arms in turn, every one in a fresh process that warms up",
            ]
        )
    )
    lines.append(
        "A ratio is the peer's time divided by ours, taken within each repetition: its median, and in "
        "brackets the lowest and the highest of several. A target is met if the median reaches it. Memory is "
        "the peak resident size of the main process, Python and torch included, and beside it what the "
        "running workers hold for themselves at the end of the measurement."
    )
    return lines


def _repetitions(record: Record) -> str:
    counts = {len(runs) for row in record["rows"] for runs in row["runs"].values()} or {0}
    return str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _summary(record: Record) -> list[str]:
    lines = ["| what | peer | ratio | target | |", "| --- | --- | ---: | ---: | --- |"]
    for row in record["rows"]:
        for arm, target in row["targets"].items():
            found = spread(_ratios(row, arm))
            lines.append(
                f"| {SECTIONS[row['section']]}, {row['name']} | {name_of(arm)} | {_times(found)} | "
                f"{target:g} | {verdict(found, target)} |"
            )
    outcome = _race(record["accuracy"])
    ratio, word = "not run", "not run"
    if outcome is not None:
        ratio, word = _race_ratio(outcome), race_verdict(outcome, ACCURACY_TARGET)
    lines.append(f"| {SECTIONS['accuracy']} | {NAMES['leftthomas']} | {ratio} | {ACCURACY_TARGET:g} | {word} |")
    return [f"## Targets{', in a quick run without meaning' if record['quick'] else ''}", "\n".join(lines)]


def _row_table(row: Record, record: Record) -> str:
    """One comparison, an arm a line."""
    rate, share, gpu = bool(row["images"]), row["flops"] is not None, bool(record["machine"].get("gpu"))
    columns = [
        "arm",
        f"time of {row['unit']}",
        *(["images/s"] if rate else []),
        "ratio",
        "target",
        "",
        "memory, MiB",
        *(["GPU, MiB"] if gpu else []),
        "workers, MiB",
        *(["share of ceiling"] if share else []),
    ]
    lines = [f"### {row['name']}", "", _line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]
    notes = []
    for arm, runs in row["runs"].items():
        found, target = _seconds(row, arm), row["targets"].get(arm)
        ratio = spread(_ratios(row, arm)) if arm != row["arms"][0] else None
        cells = [name_of(arm), _duration(spread(found))]
        cells += [_number(spread([None if s is None else row["images"] / s for s in found]))] if rate else []
        cells += [
            _times(ratio) if arm != row["arms"][0] else "1",
            "" if target is None else f"{target:g}",
            verdict(ratio, target),
            _memory(runs, "memory"),
            *([_memory(runs, "device_memory")] if gpu else []),
            _memory(runs, "workers_memory"),
        ]
        cells += [_percent(spread(_shares(row, arm, record)))] if share else []
        lines.append(_line(cells))
        notes += [f"{name_of(arm)}: {runs[0]['extrapolated']}."] if runs and "extrapolated" in runs[0] else []
        failed = sum("error" in run for run in runs)
        notes += [f"{name_of(arm)}: {failed} of {len(runs)} repetitions failed."] if failed else []
    if share:
        notes.append(f"One step has {row['flops'] / 1e9:.4g} GFLOP.")
    if FLOOR in row["runs"]:
        best = {arm: spread(_ratios(row, arm, FLOOR)) for arm in row["targets"]}
        notes.append(
            "The most that a ratio could be with the same convolutions and nothing beside them: "
            + ", ".join(f"{name_of(arm)} {_times(found)}" for arm, found in best.items())
            + "."
        )
    return "\n".join([*lines, *(["", " ".join(notes)] if notes else [])])


def _ceiling_table(row: Record) -> str:
    lines = ["| precision | TFLOP/s |", "| --- | ---: |"]
    for precision in ("fp32", "tf32", "bf16"):
        found = spread(_ceiling(row, precision))
        if precision == "tf32" and found is None:
            continue  # of a GPU alone
        shown = (
            "not measured"
            if found is None
            else _number(Spread(*(value / 1e12 for value in (found.median, found.low, found.high)), found.count))
        )
        lines.append(f"| {precision} | {shown} |")
    return "\n".join(lines)


def _systems_table(rows: list[Record], on_gpu: bool) -> str:
    columns = [
        "system",
        "batch",
        "time of one step",
        "images/s",
        "one epoch",
        "memory, MiB",
        *(["GPU, MiB"] if on_gpu else []),
    ]
    lines = [_line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]
    for row in rows:
        (runs,) = row["runs"].values()
        seconds = spread(_seconds(row, row["arms"][0]))
        steps = [run["steps"] for run in runs if "steps" in run]
        epoch = f"{seconds.median * steps[0]:,.0f} s" if seconds else "not measured"
        rate = _three(row["images"] / seconds.median) if seconds else "not measured"
        lines.append(
            _line(
                [
                    row["name"],
                    str(row["settings"]["batch"]),
                    _duration(seconds),
                    rate,
                    epoch,
                    _memory(runs, "memory"),
                    *([_memory(runs, "device_memory")] if on_gpu else []),
                ]
            )
        )
    return "\n".join(lines)


def _accuracy(found: Record) -> list[str]:
    if "skipped" in found:
        return [f"Not run: {found['skipped']}."]
    lines = ["| arm | training until then | epochs | last kNN, % |", "| --- | ---: | ---: | ---: |"]
    for name, arm in (("ours", found["ours"]), (NAMES["leftthomas"], found["peer"])):
        if "error" in arm:
            lines.append(f"| {name} | {arm['error']} | | |")
            continue
        last = arm["curve"][-1]
        spent = f"{arm['trained']:.0f} s" + ("" if arm["seconds"] is not None else ", goal not reached")
        lines.append(f"| {name} | {spent} | {last['epochs']:.2f} | {last['knn']:.2f} |")
    outcome = _race(found)
    settings = [
        f"- {name}: " + ", ".join(_flat(arm.get("trained_with", {})))
        for name, arm in (("ours", found["ours"]), (NAMES["leftthomas"], found["peer"]))
    ]
    ratio = "" if outcome is None else f" Ratio: {_race_ratio(outcome)}."
    return [
        f"Seconds of training until the validation kNN (cosine, k 200, temperature 0.1) first reaches "
        f"{found['goal']:g} %, looked at every {found['share']:g} epochs; evaluations are not counted. Images: "
        f"{found['images']}. One training each, seed {found['seed']}, stopped after {found['limit'] / 60:g} "
        f"minutes.{ratio} The rate and the length of ours were chosen on the validation images that judge the "
        "race; the recipe runs as it comes.",
        "\n".join(lines),
        "\n".join(["Settings, which differ:", "", *settings]),
    ]


def _workers(found: Record) -> list[str]:
    if not found:
        return []
    lines = ["| arm | chosen | seconds by number of workers |", "| --- | ---: | --- |"]
    for name, sweep in found.items():
        tried = ", ".join(
            f"{count}: {'failed' if seconds is None else format(seconds, '.4g')}"
            for count, seconds in sweep["seconds"].items()
        )
        lines.append(f"| {name} | {sweep['chosen']} | {tried} |")
    return [
        "## Workers of the peers' data loaders",
        "Chosen by a short measurement at the start, or given.",
        "\n".join(lines),
    ]


def _race(found: Record) -> Race | None:
    arms = [found.get(name, {"error": "not run"}) for name in ("ours", "peer")]
    if any("error" in arm for arm in arms):
        return None
    return race(arms[0]["seconds"], arms[1]["seconds"], arms[1]["trained"])


def _race_ratio(found: Race) -> str:
    if found.ratio is None:
        return "ours did not reach the goal"
    return f"{'at least ' if found.bound else ''}{found.ratio:.2f}"


def _seconds(row: Record, arm: str) -> list[float | None]:
    return [run.get("seconds") for run in row["runs"][arm]]


def _ratios(row: Record, arm: str, beside: str = "") -> list[float | None]:
    """Of an arm's time to that of ``beside``, or else of ours."""
    ours, peer = _seconds(row, beside or row["arms"][0]), _seconds(row, arm)
    whole = min(len(ours), len(peer))  # a repetition that is under way has not reached every arm
    return ratios(ours[:whole], peer[:whole])


def _ceiling(row: Record, precision: str) -> list[float | None]:
    return [run.get(precision) for run in row["runs"]["ceiling.measure"]]


def _shares(row: Record, arm: str, record: Record) -> list[float | None]:
    """Of the median ceiling in the arm's precision, by repetition; nothing if no ceiling was measured."""
    ceilings = [other for other in record["rows"] if other["section"] == "ceiling"]
    runs = row["runs"][arm]
    if not ceilings:
        return []
    most = {run.get("precision", ""): spread(_ceiling(ceilings[0], run.get("precision", ""))) for run in runs}
    return fractions(
        row["flops"],
        _seconds(row, arm),
        [found.median if (found := most[run.get("precision", "")]) else None for run in runs],
    )


def _flat(settings: Record, prefix: str = "") -> list[str]:
    """``key value`` of every setting, blocks with dots."""
    found = []
    for key, value in settings.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key} {value}"]
    return found


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _duration(found: Spread | None) -> str:
    if found is None:
        return "not measured"
    unit, scale = ("ms", 1000) if found.median < 1 else ("s", 1)
    return f"{_number(Spread(found.median * scale, found.low * scale, found.high * scale, found.count))} {unit}"


def _number(found: Spread | None) -> str:
    if found is None:
        return "not measured"
    return _three(found.median) + (f" ({_three(found.low)} to {_three(found.high)})" if found.count > 1 else "")


def _three(value: float) -> str:
    """Three digits, and whole numbers from a hundred on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(found: Spread | None) -> str:
    if found is None:
        return "not measured"
    return f"{found.median:.2f}" + (f" ({found.low:.2f} to {found.high:.2f})" if found.count > 1 else "")


def _percent(found: Spread | None) -> str:
    return "not measured" if found is None else f"{100 * found.median:.0f} %"


def _memory(runs: list[Record], key: str) -> str:
    found = spread([run.get(key) for run in runs])
    return "" if found is None else f"{found.high:.0f}"
