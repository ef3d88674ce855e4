"""Long-format tables behind the charts of ``dvc plots show``: one row for one point, bar or cell."""

from collections.abc import Sequence

import numpy
import pandas

from lib.report.records import Record


def curves_table(records: Sequence[Record]) -> pandas.DataFrame:
    """Every epoch of every variant; a column that a variant does not have is empty there."""
    frames = [record.curve.assign(variant=record.variant) for record in records]
    frame = pandas.concat(frames, ignore_index=True)
    return frame[["variant", *(name for name in frame.columns if name != "variant")]]


def accuracy_table(records: Sequence[Record]) -> pandas.DataFrame:
    """Columns model, variant, latent, measure and value in percent."""
    rows = []
    for record in records:
        for latent in record.latents:
            measures = {"fine-tuned top-1" if record.finetuned else "probe top-1": latent.top1, "kNN top-1": latent.knn}
            if latent is record.main and record.study:
                measures["best top-1, study's protocol"] = record.study.top1
            rows += [
                (record.label(latent), record.variant, latent.name, measure, value)
                for measure, value in measures.items()
            ]
    return pandas.DataFrame(rows, columns=["model", "variant", "latent", "measure", "value"])


def confusion_counts(record: Record) -> numpy.ndarray:
    """Test images [C, C] of the main latent's probe: rows are the actual class, columns the predicted."""
    classes = len(record.classes)
    pairs = record.labels * classes + record.predictions
    return numpy.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def confusion_table(records: Sequence[Record]) -> pandas.DataFrame:
    """Columns variant, actual, predicted, images and percent (of the actual class).

    Empty cells are left out, except on the diagonal, so that each class is there on both axes.
    """
    rows = []
    for record in records:
        counts = confusion_counts(record)
        for actual, predicted in zip(*numpy.nonzero(counts + numpy.eye(len(counts), dtype=int))):
            images = counts[actual, predicted]
            percent = 100 * images / max(1, counts[actual].sum())
            rows.append((record.variant, record.classes[actual], record.classes[predicted], images, round(percent, 2)))
    return pandas.DataFrame(rows, columns=["variant", "actual", "predicted", "images", "percent"])
