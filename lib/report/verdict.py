"""One small file for each run, and the verdict from a folder of them: ``python -m lib verdict FOLDER``.

FOLDER/runs/<variant>.json come from several machines over several days; FOLDER/params.yaml, or else ./params.yaml,
holds the rule. FOLDER receives verdict.json, verdict.md and the figures. What is read and what is refused:
docs/verdict.md.
"""

import base64
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy
import pandas

from lib.methods import typed_options
from lib.params.experiment import Experiment, read_experiment
from lib.params.pretraining import Pretraining
from lib.params.spec import PARAMS_FILE
from lib.params.verdict import Rule
from lib.report import figures_verdict as draw
from lib.report.dose import term_dose
from lib.report.figures import save_figure
from lib.report.records import require_same
from lib.runtime.errors import UserError, shown
from lib.runtime.files import read_about, read_arrays, read_json, require_file, write_json, write_text
from lib.verdict.judge import CORRECT, KEYS, judge

RUNS, PIXELS = "runs", "pixels_8x8.json"  # the folder of runs, and beside it the landmark that no encoder made
LANDMARK = Path("data/landmarks") / PIXELS
OTHERS = ("z", "whitened", "occlusion")  # of a run's memory what holds bits and is no kind of cue
RULES_PAGE = Path(__file__).parents[2] / "docs/verdict.md"
SHOWN = {"top1": "Probe", "top1 z": "Probe of z", "e": "e", "c": "c"}  # of each run, by the names of `row_of`
SHOWN |= {"e whitened": "e, whitened", "c whitened": "c, whitened"}
SHOWN |= {"e occlusion_25": "e, 25 % hidden", "e occlusion_50": "e, 50 % hidden"}
BITS = {"e": "episode_bits", "c": "concept_bits"}
WORDS = {"h1": "H1: keeps the probe", "h2": "H2: separates", "against_frontier": "Against the frontier"}
FIGURES = {
    "plane": (draw.plane_figure, "Concept against episode bits: the frontier of temperature, the arms, the landmarks"),
    "dose": (draw.dose_figure, "Episode bits and probe against the dose of the term"),
    "ranks": (draw.ranks_figure, "Gain of episode bits over the baseline, by the competitor's rank"),
    "completion": (draw.completion_figure, "Episode bits against the occluded share of the cue"),
}
SOURCES = (
    "data/encoders/{}.safetensors",
    "metrics/{}.json",
    "data/memory/{}.json",
    "metrics/memory/{}.json",
    "data/scores/{}.npz",
    "plots/curves/{}.csv",
)


# a run's file


def collect(rule: Rule, folder: Path, variants: Iterable[str]) -> None:
    """One file for each, from the pipeline's outputs; and the landmark of pixels, where there is one.

    A UserError names a run that is there already with other numbers.
    """
    runs = {folder / RUNS / f"{variant}.json": run_file(variant, rule) for variant in variants}
    for path, run in runs.items():
        require_same(path, run)
    for path, run in runs.items():
        write_json(path, run)
    if LANDMARK.is_file():
        pixels = read_json(LANDMARK)
        write_json(folder / PIXELS, {**pixels["cues"]["trained"], **_fuller(pixels)})


def finished(rule: Rule) -> list[str]:
    """The variants of the rule that this machine's pipeline has taken through all stages that the verdict reads."""
    return [name for name in rule.arm_of if all(Path(source.format(name)).is_file() for source in SOURCES)]


def run_file(variant: str, rule: Rule, root: Path = Path()) -> dict[str, Any]:
    """What the verdict needs of one finished run, from the pipeline's outputs below ``root``."""
    encoder, *records, scores, curve = (root / source.format(variant) for source in SOURCES)
    about, arrays = read_about(encoder), read_arrays(scores)
    metrics, fuller, memory = map(read_json, records)
    try:
        params = Pretraining.from_json(about["pretraining"])
        correct = next(value for name, value in arrays.items() if name != "labels") == arrays["labels"]
        return {
            "name": variant,
            "arm": rule.arm_of[variant],
            "rule": params.rule,
            "data": about["data"]["checksum"],
            "versions": about["versions"],
            "pretraining": {key: value for key, value in params.as_json().items() if key != "rule"},
            "lambda": dose(params, curve),
            **{key: metrics[key] for key in ("top1", "knn", "z") if key in metrics},
            CORRECT: {"images": len(correct), "bits": base64.b64encode(numpy.packbits(correct).tobytes()).decode()},
            "memory": {**memory, **_fuller(fuller["latents"][fuller["main"]])},
        }
    except (KeyError, TypeError, StopIteration) as error:
        what = f"the files of variant {variant} are of another version ({error})"
        raise UserError(f"{what}; dvc repro -f linear@{variant} memory@{variant}") from None


def _fuller(latent: Mapping[str, Any]) -> dict[str, Any]:
    """Of the main latent's record: gains by rank under the trained cues, and the curve of occlusion as columns."""
    curve = latent.get("occlusion", [])
    columns = {"share": "percent", "episode_bits": "episode_bits", "concept_bits": "concept_bits"}
    return {
        "ranks": latent["cues"]["trained"]["gain_by_rank"],
        "occlusion": {name: [point[key] for point in curve] for name, key in columns.items()},
    }


def dose(params: Pretraining, curve: Path) -> float | None:
    """lambda: a term's pull on a positive pair as a share of NT-Xent's; 0 of NT-Xent alone, None of other losses."""
    require_file(curve)
    options = params.options
    if options.get("term") == "none" and params.epochs and options["negatives"] == "all":
        return 0.0
    percent = term_dose(params, pandas.read_csv(curve))
    return None if percent is None else percent / 100


def read_runs(folder: Path, experiment: Experiment) -> list[dict[str, Any]]:
    """The runs of ``folder`` that the rule names. Refused, in one line: a run of no arm, of a pilot's seed, with
    another rule's digest or none, with other settings than params.yaml has, there twice, or on other images."""
    rule, runs = required(experiment), [read_json(path) for path in sorted(folder.glob("*.json"))]
    for run in runs:
        try:
            check_run(run, rule, experiment)
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder} has a run of another version ({error}); make it again: dvc repro") from None
    names = [run["name"] for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{folder} has run {twice[0]} in two files; keep one of them")
    images = {run["data"]: run["name"] for run in runs}
    if len(images) > 1:
        raise UserError(f"runs of different images: {', '.join(images.values())}; a verdict needs one data set")
    return runs


def required(experiment: Experiment) -> Rule:
    if experiment.rule is None:
        raise UserError("params.yaml has no rule under verdict; take the preset hypothesis, or write one")
    return experiment.rule


def check_run(run: Mapping[str, Any], rule: Rule, experiment: Experiment) -> None:
    name, params, again = run["name"], run["pretraining"], "train it again under this rule: dvc repro"
    if params["seed"] in rule.pilot_seeds:
        raise UserError(f"run {name} has the pilot's seed {params['seed']}, which helped to set the rule; remove it")
    if name not in rule.arm_of:
        raise UserError(f"run {name} is of no arm of the rule {rule.name}; remove it")
    if run["rule"] != rule.digest:
        what = "another rule than that of params.yaml" if run["rule"] else "no rule"
        raise UserError(f"run {name} was trained under {what}: the rule must be older than the run; {again}")
    declared = experiment.variants[name]
    now = replace(declared, options=asdict(typed_options(declared))).as_json()
    flat, expected = ({**each, **each["options"], "options": None} for each in (params, now))
    # what a method does not read of the shared numbers is absent from its run
    names = flat.keys() | expected.keys() - {"encoder", "gamma", "augment_second"}
    if unlike := sorted(key for key in names if flat.get(key) != expected.get(key)):
        where = f"{unlike[0]} of run {name} is {shown(flat.get(unlike[0]))}"
        raise UserError(f"{where}, not what params.yaml has; {again}")


def rows_of(runs: Sequence[Mapping[str, Any]], rule: Rule) -> pandas.DataFrame:
    """The columns that `lib.verdict.judge.judge` reads; what a run lacks is NaN."""
    rows = [row_of(run, rule) for run in runs]
    columns = [*KEYS, "top1", "e", "c", *dict.fromkeys(key for row in rows for key in row)]
    return pandas.DataFrame(rows, columns=list(dict.fromkeys(columns)))


def row_of(run: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    """One run as columns: ``e`` and ``c`` (of h, trained family), ``e z``, ``rank 1``, ``occluded 25``."""
    memory = run["memory"]
    row = {"variant": run["name"], "arm": rule.arm_of[run["name"]], "seed": run["pretraining"]["seed"]}
    row |= {"top1": run["top1"], "lambda": run.get("lambda"), "top1 z": run.get("z", {}).get("top1")}
    measured = {"": memory, " z": memory.get("z", {}), " whitened": memory.get("whitened", {})}
    for suffix, bits in measured.items():
        row |= {f"{short}{suffix}": bits[name] for short, name in BITS.items() if name in bits}
    cues = [key for key, found in memory.items() if isinstance(found, dict) and "episode_bits" in found]
    row |= {f"e {cue}": memory[cue]["episode_bits"] for cue in cues if cue not in OTHERS}
    row |= {f"rank {rank}": gain for rank, gain in memory.get("ranks", {}).items()}
    curve = memory.get("occlusion", {})
    row |= {f"occluded {share:g}": e for share, e in zip(curve.get("share", []), curve.get("episode_bits", []))}
    if packed := run.get(CORRECT):
        bits = numpy.frombuffer(base64.b64decode(packed["bits"]), dtype=numpy.uint8)
        row[CORRECT] = numpy.unpackbits(bits, count=packed["images"]).astype(bool)
    return row


# the verdict


def write_verdict(experiment: Experiment, folder: Path, page: Path, pictures: Path) -> list[str]:
    """``page`` with the suffixes .json and .md, and the figures, from the runs in ``folder``; returns what to say."""
    rule, runs = required(experiment), read_runs(folder / RUNS, experiment)
    if not runs:
        raise UserError(f"{folder / RUNS} holds no run of the rule {rule.name}; put <variant>.json files there")
    rows = rows_of(runs, rule)
    found = judge(rule, rows)
    pixels = read_json(folder / PIXELS) if (folder / PIXELS).is_file() else None
    write_json(page.with_suffix(".json"), found)
    places = [os.path.relpath(path, page.parent) for path in (RULES_PAGE, pictures)]
    write_text(page.with_suffix(".md"), markdown(found, rule, rows, *places))
    for name, (figure, _) in FIGURES.items():
        save_figure(pictures / f"{name}.png", figure, found, rule, pixels)
    missing = found["runs"]["missing"]
    lines = [f"{rule.name}: {found['state']}"]
    lines += [f"still missing: {', '.join(missing)}"] if missing else []
    words = found["hypotheses"].items()
    return lines + [f"{arm}: {', '.join(f'{key} {said[key]}' for key in WORDS)}" for arm, said in words]


def markdown(found: Mapping[str, Any], rule: Rule, rows: pandas.DataFrame, rules_page: str, pictures: str) -> str:
    """The page of a verdict: words, numbers, the figures in the folder ``pictures``, and the runs of `rows_of`."""
    numbers, control = rule.numbers, found["assay"]
    level = f"{100 * numbers.confidence:g} %"
    intro = (
        f"Differences to {numbers.baseline} seed by seed: mean [{level} t interval] and n seeds; p is the exact "
        "sign-flip test's, adjusted over the hypotheses by Holm's steps. Bits of e and c are of h, under the family of "
        f"augmentations that training used. [The rule in words]({rules_page})."
    )
    state = "Blind: no word about e can be had" if control["blind"] else "Passed"
    state = "Not run yet" if min(control["n"]) < 2 else state
    check = (
        f"Assay check, {' against '.join(rule.controls)}: e differs by {_number(control['difference'])} bits, pooled "
        f"SD {_number(control['pooled_sd'])}, n {' and '.join(map(str, control['n']))}; asked for: more than "
        f"{numbers.assay_sd:g} SD. {state}."
    )
    parts = [f"# Verdict of the rule {rule.name}: {found['state']}", intro, check]
    if found["runs"]["missing"]:
        missing = Counter(rule.arm_of[name] for name in found["runs"]["missing"])
        parts.append(f"Runs still missing: {', '.join(f'{arm} {count}' for arm, count in missing.items())}.")
    parts += ["## Words", _table([_word_row(arm, found) for arm in rule.hypotheses])]
    notes = [f"- {arm}: {words['note']}." for arm, words in found["hypotheses"].items() if words["note"]]
    parts += ["\n".join(notes)] * bool(notes)
    errors = [f"{arm} {error['top1']:.2f}" for arm, error in found["image_error"].items() if error["top1"] is not None]
    if errors:
        parts.append(f"Paired error over test images of one pair of probes, points, never pooled: {', '.join(errors)}.")
    secondary = [
        {"Measure": measure, **{arm: _interval(found["differences"][arm][measure]) for arm in rule.hypotheses}}
        for measure in found["differences"][rule.hypotheses[0]]
    ]
    parts += ["## Differences, all measures", _table(secondary)]
    arms = [
        {"Arm": arm, **{key: _interval(by[key]) for key in ("top1", "e", "c")}} for arm, by in found["arms"].items()
    ]
    drawn = "\n\n".join(f"![{caption}]({Path(pictures, name)}.png)" for name, (_, caption) in FIGURES.items())
    runs = [
        {"Run": run["variant"], **{name: _number(run.get(key), ".2f") for key, name in SHOWN.items()}}
        for _, run in rows.iterrows()
    ]
    parts += ["## Arms", _table(arms), "## Figures", drawn, "## Runs", _table(runs)]
    parts += [f"Digest of the rule: `{found['digest']}`."]
    return "\n\n".join(parts) + "\n"


def _word_row(arm: str, found: Mapping[str, Any]) -> dict[str, str]:
    differences, words = found["differences"][arm], found["hypotheses"][arm]
    row = {"Arm": arm, "Probe, points": _interval(differences["top1"]), WORDS["h1"]: words["h1"]}
    row |= {"e, bits": _interval(differences["e"]), "Against ±delta": words["change"]}
    row |= {"p of e (Holm)": _number(differences["e"]["p_holm"])}
    row |= {"c, bits": _interval(differences["c"]), WORDS["h2"]: words["h2"]}
    return row | {
        "e above the frontier, bits": _interval(words["gap"]),
        WORDS["against_frontier"]: words["against_frontier"],
    }


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "-"
    ends = "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
    return f"{found['mean']:+.3f}{ends} ({found['n']})"


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if pandas.isna(value) else f"{value:{form}}"


def verdict_of(folder: Path, add_finished: bool) -> list[str]:
    """`write_verdict` of a folder of runs by its own params.yaml or the experiment's; ``add_finished``: first `collect`
    what is finished here."""
    own = folder / PARAMS_FILE.name
    experiment = read_experiment(own if own.is_file() else PARAMS_FILE)
    if add_finished:
        rule = required(experiment)
        collect(rule, folder, finished(rule))
    return write_verdict(experiment, folder, folder / "verdict", folder)
