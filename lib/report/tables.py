"""The results table: its rows as a frame, and as markdown with the protocols in words below it."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas

from lib.params.pretraining import Optimizer
from lib.report.published import ROWS, Published
from lib.report.records import Latent, Record
from lib.report.words import code_explanations, counted, explanations

ACCURACY = {
    "model": "Model",
    "study_top1": "Best top-1",
    "study_top5": "Best top-5",
    "top1": "Probe top-1",
    "top5": "Probe top-5",
    "validation_top1": "Validation top-1",
    "knn": "kNN top-1",
}
RUN = {
    "model": "Model",
    "dataset": "Dataset",
    "encoder": "Encoder",
    "epochs": "Epochs",
    "batch_size": "Batch",
    "seed": "Seed",
    "gamma": "Gamma",
    "optimizer": "Optimiser",
    "parameters": "Parameters",
    "seconds_per_epoch": "s/epoch",
    "memory_gb": "Memory, GB",
    "device": "Device",
    "protocol": "Protocol",
}
CODES = {
    "model": "Model",
    "units": "Units",
    "active": "Active",
    "centroid": "Nearest centroid",
    "centroid_code": "Nearest centroid's code",
    "usage_entropy": "Entropy of use",
    "pattern_entropy": "Entropy of codes, bits",
    "unused": "Unused units, %",
}
# what the first columns are called when the whole network was fine-tuned
FINETUNED = {
    "top1": "Fine-tuned top-1",
    "top5": "Fine-tuned top-5",
    "validation_top1": "Frozen probe, validation top-1",
}
SETTING = ("probe_lr", "probe_weight_decay")
PERCENT = ("study_top1", "study_top5", "top1", "top5", "validation_top1", "knn")
COLUMNS = ("model", "variant", "latent", *PERCENT, *SETTING, *(key for key in RUN if key != "model"))


def result_rows(records: Sequence[Record]) -> pandas.DataFrame:
    """One row per variant in the given order, then one per published model, then the further latents.

    What does not apply is missing. Percent columns are in percent, ``seconds_per_epoch`` is the median.
    """
    rows = [_row(record, record.main) for record in records]
    rows += [_published(row) for row in ROWS]
    rows += [_row(record, latent) for record in records for latent in record.latents[1:]]
    frame = pandas.DataFrame(rows, columns=list(COLUMNS))
    whole = dict.fromkeys(("epochs", "batch_size", "seed", "parameters"), "Int64")
    return frame.astype(
        {**whole, **dict.fromkeys((*PERCENT, *SETTING, "gamma", "seconds_per_epoch", "memory_gb"), "float64")}
    )


def markdown(records: Sequence[Record]) -> str:
    """The whole results page: accuracies, runs, and what the columns mean."""
    frame = result_rows(records)
    runs = frame.head(len(records) + len(ROWS))
    runs = runs.assign(model=runs["model"].where(runs["latent"].isna(), runs["variant"]))
    accuracy = ACCURACY | (FINETUNED if any(record.finetuned for record in records) else {})
    parts = [
        "# Results",
        "Accuracies in percent.",
        _table(frame, accuracy),
        "## How to read the columns",
        "\n".join(f"- {line}" for line in explanations(records)),
        "## Runs",
        _table(runs, RUN),
    ]
    codes = _codes(records)
    if len(codes):
        lines = "\n".join(f"- {line}" for line in code_explanations(records))
        parts += ["## Binary codes", _table(codes, CODES), lines]
    return "\n\n".join(parts) + "\n"


def _codes(records: Sequence[Record]) -> pandas.DataFrame:
    """One row for each latent that is a binary code."""
    return pandas.DataFrame(
        [
            {"model": record.label(latent), "units": latent.width, **asdict(latent.code)}
            for record in records
            for latent in record.latents
            if latent.code
        ]
    )


def cell(key: str, value: object) -> str:
    """One value as text; ``-`` where there is none."""
    if pandas.isna(value):
        return "-"
    if key in PERCENT or key in ("centroid", "centroid_code"):
        return f"{value:.2f}"
    if key == "parameters":
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _row(record: Record, latent: Latent) -> dict[str, object]:
    params = record.pretraining
    study = record.study if latent is record.main else None
    return {
        "model": record.label(latent),
        "variant": record.variant,
        "latent": latent.name,
        "study_top1": study and study.top1,
        "study_top5": study and study.top5,
        "top1": latent.top1,
        "top5": latent.top5,
        "validation_top1": latent.validation,
        "knn": latent.knn,
        "probe_lr": latent.lr,
        "probe_weight_decay": latent.weight_decay,
        "protocol": f"{record.linear['mode']}, {counted(record.linear['epochs'], 'epoch')}",
        "dataset": _dataset(record),
        "encoder": record.encoder,
        "epochs": params["epochs"],
        "batch_size": params["batch_size"],
        "seed": params["seed"],
        "gamma": params["gamma"],
        "optimizer": optimizer_words(Optimizer(**params["optimizer"])),
        "parameters": record.parameters,
        "seconds_per_epoch": round(float(record.curve["seconds"].median()), 3),
        "memory_gb": float(record.curve["memory_gb"].max()) if "memory_gb" in record.curve else None,
        "device": ", then ".join(dict.fromkeys(record.curve["device"].dropna().astype(str))),
    }


def optimizer_words(optimizer: Optimizer) -> str:
    """For example ``adam 0.001, cosine, 1 warm-up epoch``."""
    warmup = [counted(optimizer.warmup_epochs, "warm-up epoch")] if optimizer.warmup_epochs else []
    return ", ".join([f"{optimizer.name} {optimizer.lr:g}", optimizer.schedule, *warmup])


def _dataset(record: Record) -> str:
    """Its name; for a user's own images also where they came from."""
    name = record.data["dataset"]
    return f"{name} ({record.data['source']})" if name == "images" else name


def _published(row: Published) -> dict[str, object]:
    return {
        "model": f"{row.model} (published)",
        "variant": row.model,
        "study_top1": row.top1,
        "study_top5": row.top5,
        "protocol": f"best of {counted(row.study_epochs, 'epoch')}",
        "dataset": row.dataset,
        "encoder": row.encoder,
        "epochs": row.epochs,
        "batch_size": row.batch_size,
        "gamma": row.gamma,
        "optimizer": optimizer_words(row.optimizer),
    }


def _table(frame: pandas.DataFrame, columns: dict[str, str]) -> str:
    """A markdown table; columns of numbers are aligned to the right."""
    body = [[cell(key, row[key]) for key in columns] for _, row in frame.iterrows()]
    words = [key in ("model", "dataset", "encoder", "optimizer", "device", "protocol") for key in columns]
    lines = [list(columns.values()), ["---" if word else "---:" for word in words], *body]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
