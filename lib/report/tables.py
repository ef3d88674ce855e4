"""The results as one tidy frame, its replicates as means, and both as text."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy
import pandas

from lib.params.evaluation import LABEL_DRAWS, MANY_CLASSES
from lib.report import published
from lib.report.compare import CONFIDENCE, baseline, delta, floor
from lib.report.records import (
    BITS,
    CODE,
    FEW,
    UNLABELED,
    Groups,
    Record,
    confusion_counts,
    percent_of_actual,
    ranked,
    replicates,
)
from lib.runtime.errors import UserError
from lib.runtime.files import read_json, require_file
from lib.verdict.judge import half_interval

ROUNDED = {"top1": 0.01, "knn": 0.01, **dict.fromkeys(BITS, 1e-4)}  # to what, in metrics/ and in results.csv
PERCENT = ("top1", "top5", "knn", "validation_top1", "validation_knn", "study_top1", "study_top5")
MEASURED = (*PERCENT, "delta_simclr", *BITS, "dose", *CODE)  # what a mean and a deviation over seeds are taken of
SIZES = ("train_images", "test_images", "classes", "parameters", "width")
WHOLE = (*SIZES, "seed", "study_epochs", "epochs", "batch_size")
SIGNED = {"delta_simclr": "+.2f", "dose": "+.1f"}
STUDY = "Study protocol (best test epoch)"
MEASURES = {"top1": "probe top-1", "knn": "kNN top-1", "study_top1": STUDY.lower()}  # of the charts
LABELS = {"supervised": "supervised, same views"}  # as all others have them, which is not how classifiers train best
LEGEND = "docs/reading-the-table.md"
RUN = {"model": "Model", "seeds": "Seeds", "dataset": "Data", "encoder": "Encoder", "epochs": "Epochs"}
RUN |= {"batch_size": "Batch", "gamma": "Gamma", "optimizer": "Optimizer", "parameters": "Parameters"}
RUN |= {"study_epochs": "Study protocol, epochs"}
CODES = {"model": "Model", "n": "n", "width": "Units", "active": "Active"}
CODES |= {"top1": "Probe, standardized", "probe_raw": "Probe, as they are", "centroid": "Nearest centroid"}
CODES |= {"centroid_code": "Nearest centroid's code", "usage_entropy": "Entropy of use"}
CODES |= {"pattern_entropy": "Entropy of codes, bits", "unused": "Unused units, %"}


def result_rows(records: Sequence[Record]) -> pandas.DataFrame:
    """One row per variant and latent, the main latent first, then projections; accuracies in percent.

    ``delta_simclr`` and ``floor_top1``: `delta` and `floor`. What does not apply is missing.
    """
    groups = replicates(records)
    simclr = baseline(groups)
    rows = [
        {"group": name, **row, "delta_simclr": delta(record, row, simclr), "floor_top1": floor(record, row, groups)}
        for name, members in groups.items()
        for record in members
        for row in record.rows
    ]
    numbers = dict.fromkeys((*MEASURED, "floor_top1", "probe_strength", "gamma"), "float64")
    return pandas.DataFrame(rows).astype(numbers | dict.fromkeys(WHOLE, "Int64"))


def read_results(path: Path) -> pandas.DataFrame:
    """`result_rows` back from its file. A variant may be called nan or NA."""
    require_file(path)
    words = dict.fromkeys(("group", "variant", "latent", "space"), str)
    try:
        frame = pandas.read_csv(path, dtype=words, keep_default_na=False, na_values=[""])
        _ = frame[[*words, *MEASURED, *WHOLE, "floor_top1", "mode", "dataset"]].iloc[0]
    except (ValueError, KeyError, IndexError):
        raise UserError(f"{path} is damaged or of another version; dvc repro -f results") from None
    for variant, row in frame.groupby("variant", sort=False).first().iterrows():  # its main latent
        for metrics in (path.with_name(f"{variant}.json"), path.parent / f"memory/{variant}.json"):
            measured = read_json(metrics) if metrics.is_file() else {}
            found = [(measured[key], row[key], unit) for key, unit in ROUNDED.items() if measured.get(key) is not None]
            if not all(abs(now - then) < unit / 2 for now, then, unit in found):
                raise UserError(f"{path} is older than {metrics}; dvc repro results")
    return frame


def summary(frame: pandas.DataFrame) -> pandas.DataFrame:
    """One row per group and latent of `result_rows`: the mean over seeds, ``<column>_sd`` beside it, ``n``, ``seeds``.

    The deviation is that of a sample (n - 1), missing for one seed. A mean is of all n seeds, or missing. A difference
    from SimCLR has half its interval in place of the deviation, and is missing where fewer than two seeds pair. Main
    latents come first, then the published rows where the data are CIFAR-10's own, then further latents, then
    projections.
    """
    # what replicates share, then means and deviations of what was measured
    grouped = frame.groupby(["group", "latent"], sort=False)
    columns = [*MEASURED, *(key for key in UNLABELED if key in frame)]
    table, measured = grouped.first(), grouped[columns]
    whole = measured.count().eq(grouped.size(), axis=0)
    table[columns] = measured.mean().where(whole | (whole.columns == "delta_simclr"))
    table = table.join(measured.std().add_suffix("_sd"))
    few = [key for key in map(str, frame) if key.startswith(FEW)]
    table[few] = grouped[few].mean()  # and the mean of the deviations over draws
    pairs = grouped["delta_simclr"].count()
    table["delta_simclr"] = table["delta_simclr"].where(pairs > 1)
    table["delta_simclr_sd"] = half_interval(table["delta_simclr_sd"], pairs.clip(2), CONFIDENCE)
    table["n"] = grouped.size()
    table["seeds"] = grouped["seed"].agg(distinct)
    table = table.reset_index()
    # a latent is named where there are several, a projection always
    projection = table["space"] == "projection"
    several = (~projection).groupby(table["group"]).transform("sum") > 1
    label = table["group"].replace(LABELS)
    table["model"] = (label + " · " + table["latent"]).where(several | projection, label)
    # main latents, published rows, further latents, projections
    further = table.duplicated("group")
    theirs = published.ROWS if published.DATASET in set(frame["dataset"]) else ()
    parts = (table[~further], pandas.DataFrame(theirs), table[further & ~projection], table[projection])
    return pandas.concat([part for part in parts if len(part)], ignore_index=True)


def title(frame: pandas.DataFrame) -> str:
    """Data, encoders, epochs, images and seeds of a run in one line."""
    first, epochs = frame.iloc[0], distinct(frame["epochs"][frame["epochs"] > 0]) or "0"
    return (
        f"{distinct(frame['dataset'])}: encoder {distinct(frame['encoder'])}; {epochs} epoch{'s' * (epochs != '1')}; "
        f"{first['train_images']:,} training and {first['test_images']:,} test images; "
        f"seed {distinct(sorted(frame['seed']))}" + "; no labels: what needs them is left out" * (not first["classes"])
    )


def units(frame: pandas.DataFrame) -> str:
    """Of what the numbers of `result_rows` are."""
    if frame["classes"].iloc[0]:
        return "percent of test images, and bits"
    return "bits of test images; effective rank and the other view's rank are of validation images"


def measures(table: pandas.DataFrame) -> dict[str, str]:
    """What the charts show, by column of `summary`."""
    tuned = {"top1": "fine-tuned top-1"} if (table["mode"] == "finetune").any() else {}
    return {key: name for key, name in (MEASURES | tuned).items() if table[key].notna().any()}


def accuracy_columns(table: pandas.DataFrame) -> dict[str, str]:
    """Headers of the accuracy table by column of `summary`; the study's protocol, where it was run, last."""
    word = "Fine-tuned" if (table["mode"] == "finetune").any() else "Probe"
    columns = {"model": "Model", "n": "n", "top1": f"{word} top-1", "top5": f"{word} top-5", "knn": "kNN top-1"}
    columns |= {"validation_top1": "Validation top-1", "delta_simclr": "Δ simclr", "floor_top1": "Floor"}
    columns |= {"episode_bits": "Episode bits", "concept_bits": "Concept bits", "dose": "Dose λ, %"}
    columns |= {key: name for key, name in UNLABELED.items() if key in table}
    columns |= {"study_top1": f"{STUDY} top-1", "study_top5": f"{STUDY} top-5"}
    telling = {"n": table["n"].max() > 1, "top5": table["classes"].max() >= MANY_CLASSES}
    return {key: name for key, name in columns.items() if telling.get(key, table[key].notna().any())}


def main_rows(table: pandas.DataFrame) -> pandas.DataFrame:
    """Of `summary`: the main latent of each group, and what was published."""
    return table[table["group"].isna() | ~table.duplicated("group")]


def latent_rows(table: pandas.DataFrame) -> pandas.DataFrame:
    """Of `summary`: all but projections."""
    return table[table["space"] != "projection"]


def sections(frame: pandas.DataFrame) -> list[tuple[str, str, pandas.DataFrame, dict[str, str]]]:
    """Of `result_rows` heading, remark, rows and columns of each table: accuracies, projections, shares of the labels,
    runs, and binary codes, where there are any."""
    table = summary(frame)
    runs, latents, projections = main_rows(table), latent_rows(table), table[table["space"] == "projection"]
    shares = [key for key in map(str, runs) if key.startswith(FEW) and not key.endswith("_sd")]
    found = [("Results", "", latents, accuracy_columns(latents))]
    if len(projections):
        found.append(("Projections", "", projections, accuracy_columns(projections)))
    if shares:
        few = {key: f"{100 * float(key.removeprefix(FEW)):.4g} %" for key in shares}
        word = "Fine-tuned" if (table["mode"] == "finetune").any() else "Probe"
        about = f"{word} top-1 of the main latent; ± is the standard deviation over {LABEL_DRAWS} stratified draws"
        rows, columns = runs.dropna(subset=shares), {"model": "Model", **few, "top1": "100 %"}
        found.append(("Shares of the training labels", f"{about}, of all labels over seeds.", rows, columns))
    found.append(("Runs", "", runs.assign(model=runs["group"].fillna(runs["model"])), RUN))
    if len(codes := table[table["active"].notna()]):
        columns = {key: name for key, name in CODES.items() if key != "n" or codes["n"].max() > 1}
        found.append(("Binary codes", "", codes, columns))
    return found


def markdown(frame: pandas.DataFrame) -> str:
    """The results page of `result_rows`."""
    deviations = f"± is the standard deviation over n seeds, after a Δ half its {100 * CONFIDENCE:g} % interval"
    intro = f"{units(frame).capitalize()}; {deviations}."
    parts = [f"# {title(frame)}", f"{intro} [What each column means](../{LEGEND})."]
    for heading, about, rows, columns in sections(frame):
        parts += [f"## {heading}", about, markdown_table(rows, columns)]
    parts.remove("## Results")  # which the page's own title stands for
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown_table(table: pandas.DataFrame, columns: Mapping[str, str]) -> str:
    """Columns of numbers are aligned to the right."""
    few = [key for key in columns if key.startswith(FEW)]
    numbers = {*MEASURED, *WHOLE, *UNLABELED, "n", "gamma", "floor_top1", *few}
    lines = [columns.values(), ["---:" if key in numbers else "---" for key in columns], *cells(table, columns)]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def cells(table: pandas.DataFrame, columns: Iterable[str]) -> list[list[str]]:
    """Rows of `summary` as text: the mean, ``±`` and the deviation; ``-`` where there is nothing."""
    return [[_cell(row, key) for key in columns] for _, row in table.iterrows()]


def _cell(row: pandas.Series, key: str) -> str:
    percent = (*PERCENT, *BITS, *UNLABELED, "floor_top1", "probe_raw", "centroid", "centroid_code")
    two = key.startswith(FEW) or key in percent
    form = SIGNED.get(key, ".2f" if two else ".3g" if isinstance(row[key], float) else "")
    return "-" if pandas.isna(row[key]) else with_deviation(row, key, ",.0f" if key in WHOLE else form)


def with_deviation(row: pandas.Series, key: str, form: str) -> str:
    """A value of `summary`, and ``±`` its deviation where there is one."""
    deviation = row.get(f"{key}_sd")
    return f"{row[key]:{form}}" + ("" if pandas.isna(deviation) else f" ± {deviation:{form.removeprefix('+')}}")


def best_first(table: pandas.DataFrame, groups: Groups) -> pandas.DataFrame:
    """Rows of `summary` in the order of `ranked`, those that were published last."""
    places = {name: place for place, name in enumerate(ranked(groups))}
    return table.sort_values("group", key=lambda names: names.map(places), kind="stable")


def accuracy_table(table: pandas.DataFrame, groups: Groups, colors: Mapping[str, str]) -> pandas.DataFrame:
    """The bars of ``dvc plots show``: `summary` with a row per measure, best first, ``value`` in percent; a probe has
    its ``floor``.
    """
    parts = []
    for key, measure in measures(table).items():
        part = table[["model", "group", "latent", key, f"{key}_sd", "n"]].dropna(subset=["group", key])
        part.insert(3, "measure", measure)
        part["floor"] = table["floor_top1"] if key == "top1" else None
        parts.append(part.rename(columns={key: "value", f"{key}_sd": "sd"}).round(4))
    if not parts:  # without labels
        return pandas.DataFrame(columns=["model", "group", "latent", "measure", "value", "sd", "n", "floor"])
    bars = pandas.concat(parts).astype({"n": int})
    bars["color"] = bars["group"].map(colors)
    return best_first(bars, groups)


def curves_table(groups: Groups) -> pandas.DataFrame:
    """Every epoch of every variant; a column that a variant does not have is empty there."""
    frames = {(name, record.variant): record.curve for name, members in groups.items() for record in members}
    table = pandas.concat(frames, names=["group", "variant", None]).reset_index(level=[0, 1])
    return table if "knn" in table else table.assign(knn=None)  # without labels: dvc.yaml draws it by name


def confusion_table(groups: Groups) -> pandas.DataFrame:
    """Columns group, actual, predicted, images and percent (of the actual class); replicates are summed.

    Empty cells are left out, except on the diagonal, so that each class is there on both axes.
    """
    rows = []
    for name, members in groups.items():
        if not members[0].classes:
            continue
        counts, classes = confusion_counts(members), members[0].classes
        percent = percent_of_actual(counts).round(2)
        shown = zip(*numpy.nonzero(counts + numpy.eye(len(counts), dtype=int)))
        rows += [(name, classes[at[0]], classes[at[1]], counts[at], percent[at]) for at in shown]
    return pandas.DataFrame(rows, columns=["group", "actual", "predicted", "images", "percent"])


def distinct(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
