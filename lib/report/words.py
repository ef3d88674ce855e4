"""What the columns of the results table mean, in words, with this run's own numbers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from lib.params.pretraining import Augment
from lib.report.published import OPTIONS, ROWS, SOURCE
from lib.report.records import Latent, Record

CLEAR_TOP5 = 95.0  # percent; above it for every row, top-5 tells little


def standard_error(percent: float, images: int) -> float:
    """Binomial standard error, in points, of an accuracy measured on so many images."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def explanations(records: Sequence[Record]) -> list[str]:
    """One markdown line for each thing that a reader of the table has to know."""
    return [
        *_best(records),
        _probe(records),
        _settings(records),
        _knn(records),
        *_latents(records),
        *_kinds(records),
        _error(records),
        _seeds(records),
        *_chance(records),
        *_top5(records),
        _published(records),
    ]


def code_explanations(records: Sequence[Record]) -> list[str]:
    """The same for the table of binary codes."""
    images = _join([f"{count:,}" for count in sorted({record.test_images for record in records})])
    return [
        "**Nearest centroid**: percent of test images; cosine with the mean code of each class over all training "
        "images, or with that mean's own code, its most frequent units.",
        "**Entropy of use**: how evenly the units are used, mean over them, as a share of its largest value; 0 if "
        f"all codes are the same. **Entropy of codes**: of whole codes of the {images} test images; at most "
        f"{_join([f'{math.log2(record.test_images):.2f}' for record in records])} bits, if all differ.",
        "**Unused**: active for no test image.",
    ]


def counted(number: float, thing: str) -> str:
    """``1 epoch``, ``2 epochs``, ``0.5 epochs``."""
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def _best(records: Sequence[Record]) -> list[str]:
    epochs = sorted({record.study.epochs for record in records if record.study})
    if not epochs:
        return [
            "**Best top-1, best top-5**: the study's own protocol, left out of this run (`linear.study_epochs: 0`)."
        ]
    return [
        f"**Best top-1, best top-5**: the study's own protocol, to compare with the published rows and for "
        f"nothing else. Encoder parameters frozen while its BatchNorm statistics move, augmented images, a "
        f"linear layer trained for {_join(counted(number, 'epoch') for number in epochs)} on all training images, "
        f"best epoch picked on the test images, for top-1 and top-5 apart, which flatters both. One departure: the "
        f"study also picked its pretraining checkpoint by the best kNN on the test images; here it is the last "
        f"epoch's."
    ]


def _probe(records: Sequence[Record]) -> str:
    words = _join([record.protocol["linear"] for record in records], "; or ")
    if any(record.finetuned for record in records):
        return (
            f"**Fine-tuned**: {words}. **Frozen probe, validation**: top-1, on the validation images, of the probe "
            f"on frozen features that fine-tuning starts from, before they are used to fit it; it does not measure "
            f"the fine-tuned network."
        )
    return (
        f"**Probe**: {words}. **Validation**: top-1 of the probe on the validation images, before they are used "
        f"to fit it."
    )


def _settings(records: Sequence[Record]) -> str:
    """What validation chose for each latent, and where that is the grid's first or last value."""
    rows = [(record, latent) for record in records for latent in record.latents]
    chosen = _join([f"{record.label(latent)} {latent.lr:g}, {latent.weight_decay:g}" for record, latent in rows], "; ")
    ends = []
    for key, words in (("lr", "rate"), ("weight_decay", "weight decay")):
        names = [record.label(latent) for record, latent in rows if _at_an_end(record, latent, key)]
        if names:
            ends.append(f"{words} of {'all' if len(names) == len(rows) else _join(names)}")
    beyond = f" At an end of the grid, so that a better one may lie beyond it: {'; '.join(ends)}." if ends else ""
    return f"**Chosen settings** of the probe (rate, weight decay): {chosen}.{beyond}"


def _at_an_end(record: Record, latent: Latent, key: str) -> bool:
    return getattr(latent, key) in (min(record.grid[key]), max(record.grid[key]))


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
        line += "".join(f" `{name}` is their concatenation." for name in names if name in ("both", "all"))
        if "mean" in names:
            line += " `mean` is their average, as wide as one of them."
        lines.append(line)
    return lines


def _kinds(records: Sequence[Record]) -> list[str]:
    """Rows that are no self-supervised training."""
    supervised = _join(record.variant for record in records if record.supervised)
    random = _join(record.variant for record in records if not record.pretraining["epochs"])
    lines = []
    if supervised:
        lines.append(
            f"**Trained with labels**: {supervised}, all others without any. It shows what the encoder, the "
            "augmentation and the epochs can give."
        )
    if random:
        lines.append(f"**Not trained**: {random}. With 0 epochs an encoder is as it was drawn: the floor of its kind.")
    return lines


def _error(records: Sequence[Record]) -> str:
    errors = _join(
        [
            f"{standard_error(record.main.top1, record.test_images):.2f} at {record.main.top1:.2f} ({record.variant})"
            for record in records
        ]
    )
    images = _join([f"{count:,}" for count in sorted({record.test_images for record in records})])
    return (
        f"**Standard error** of the main latent's top-1 from the choice of the {images} test images alone "
        f"(binomial), in points: {errors}."
    )


def _seeds(records: Sequence[Record]) -> str:
    seeds = _join(sorted({record.pretraining["seed"] for record in records}))
    return (
        f"**One training per model** (seed {seeds}): another seed gives another number, by an amount that one "
        f"run cannot tell. Differences between these rows cannot be attributed to the loss."
    )


def _chance(records: Sequence[Record]) -> list[str]:
    lines = []
    for count in sorted({len(record.classes) for record in records}):
        lines.append(
            f"**Chance** with {count} classes is {100 / count:.3g} for top-1 and {min(100, 500 / count):.3g} for top-5."
        )
    return lines


def _top5(records: Sequence[Record]) -> list[str]:
    lowest = min(latent.top5 for record in records for latent in record.latents)
    if lowest <= CLEAR_TOP5:
        return []
    return [f"**Top-5** is nearly always right here, {lowest:.2f} at the least, and tells little."]


def _published(records: Sequence[Record]) -> str:
    row = ROWS[0]
    line = (
        f"**Published** rows: {SOURCE}; {row.encoder} on {row.dataset}, {counted(row.epochs, 'epoch')}, batch "
        f"{row.batch_size}, one training per model, best test epoch of {row.study_epochs}."
    )
    differing = [
        f"{name} {_join(found, ' and ')} instead of {_text(theirs)}"
        for name, ours, theirs in _compared(records)
        if (found := [value for value in ours if value != theirs])
    ]
    if differing:
        line += f" This run differs in {_join(differing)}, so the two do not measure the same thing."
    return line


def _compared(records: Sequence[Record]) -> Iterator[tuple[str, list[object], object]]:
    """Each setting's name in params.yaml, its values in this run, and the study's."""
    row, runs = ROWS[0], [record.pretraining for record in records]
    yield "dataset", [record.data["dataset"] for record in records], row.dataset
    yield "encoder", [record.encoder for record in records], row.encoder
    for key in ("epochs", "batch_size"):
        yield key, [run[key] for run in runs], getattr(row, key)
    yield "gamma", [run["gamma"] for run in runs if run["gamma"] is not None], max(row.gamma or 0 for row in ROWS)
    for block, theirs in (("optimizer", asdict(row.optimizer)), ("augment", asdict(Augment()))):
        for key, value in theirs.items():
            yield f"{block}.{key}", [run[block].get(key, value) for run in runs], value  # older files lack newer keys
    for record, run in zip(records, runs):
        if run["method"] in {row.model for row in ROWS}:
            for key, value in run["options"].items():
                yield f"variants.{record.variant}.{key}", [value], OPTIONS.get(key)
    yield "linear.study_epochs", [record.study.epochs for record in records if record.study], row.study_epochs


def _join(items: Iterable[object], between: str = ", ") -> str:
    """Each different item once, in order."""
    return between.join(dict.fromkeys(_text(item) for item in items))


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
