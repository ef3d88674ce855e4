"""What the columns of the results table mean, in words, with this run's own numbers."""

import math
from collections.abc import Iterable, Sequence

from lib.report.published import ROWS, SOURCE
from lib.report.records import Record


def standard_error(percent: float, images: int) -> float:
    """Binomial standard error, in points, of an accuracy measured on so many images."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def explanations(records: Sequence[Record]) -> list[str]:
    """One markdown line for each thing that a reader of the table has to know."""
    return [*_best(records), _probe(records), _knn(records), *_latents(records), _error(records), _seeds(records),
            *_chance(records), *_published(records)]


def _best(records: Sequence[Record]) -> list[str]:
    epochs = sorted({record.study.epochs for record in records if record.study})
    if not epochs:
        return ["**Best top-1, best top-5**: the study's own protocol, left out of this run "
                "(`linear.study_epochs: 0`)."]
    return [f"**Best top-1, best top-5**: the study's own protocol, to compare with the published rows and for "
            f"nothing else. Encoder parameters frozen while its BatchNorm statistics move, augmented images, a "
            f"linear layer trained for {_join(epochs)} epochs on all training images, best epoch picked on the "
            f"test images, for top-1 and top-5 apart, which flatters both."]


def _probe(records: Sequence[Record]) -> str:
    words = _join([record.protocol["linear"] for record in records], "; or ")
    validation = "of the probe on the validation images, before they are used to fit it"
    return f"**Probe**: {words}. **Validation**: top-1 {validation}."


def _knn(records: Sequence[Record]) -> str:
    words = _join([record.protocol["knn"] for record in records], "; or ")
    return f"**kNN**: vote of the nearest training images, weighted by exp(similarity / temperature); {words}."


def _latents(records: Sequence[Record]) -> list[str]:
    lines = []
    for record in records:
        names = [latent.name for latent in record.latents]
        if len(names) == 1:
            continue
        line = f"**{record.variant}** has several latents; `{names[0]}` is the main one, used where only one is."
        if "both" in names:
            line += " `both` is their concatenation."
        if "mean" in names:
            line += " `mean` is their average, as wide as one of them."
        lines.append(line)
    return lines


def _error(records: Sequence[Record]) -> str:
    errors = _join([f"{standard_error(record.main.top1, record.test_images):.2f} at {record.main.top1:.2f} "
                    f"({record.variant})" for record in records])
    images = _join([f"{count:,}" for count in sorted({record.test_images for record in records})])
    return (f"**Standard error** of a probe's top-1 from the choice of the {images} test images alone "
            f"(binomial), in points: {errors}.")


def _seeds(records: Sequence[Record]) -> str:
    seeds = _join(sorted({record.pretraining["seed"] for record in records}))
    return (f"**One training per model** (seed {seeds}): another seed gives another number, by an amount that one "
            f"run cannot tell. Differences between these rows cannot be attributed to the loss.")


def _chance(records: Sequence[Record]) -> list[str]:
    lines = []
    for count in sorted({len(record.classes) for record in records}):
        line = (f"**Chance** with {count} classes is {100 / count:.3g} for top-1 and "
                f"{min(100, 500 / count):.3g} for top-5.")
        lines.append(line + (" Top-5 is nearly always right here and tells little." if count <= 10 else ""))
    return lines


def _published(records: Sequence[Record]) -> list[str]:
    row = ROWS[0]
    line = (f"**Published** rows: {SOURCE}; {row.encoder} on {row.dataset}, {row.epochs} epochs, batch "
            f"{row.batch_size}, one training per model, best test epoch of {row.study_epochs}.")
    differing = [name for name, ours, theirs in (
        ("dataset", {record.data["dataset"] for record in records}, row.dataset),
        *((key, {record.pretraining[key] for record in records}, getattr(row, key))
          for key in ("encoder", "epochs", "batch_size")),
        ("linear.study_epochs", {record.study.epochs for record in records if record.study}, row.study_epochs),
    ) if ours - {theirs}]
    if differing:
        line += f" This run differs in {_join(differing)}, so the two do not measure the same thing."
    return [line]


def _join(items: Iterable[object], between: str = ", ") -> str:
    """Each different item once, in order."""
    return between.join(dict.fromkeys(str(item) for item in items))
