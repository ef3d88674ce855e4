"""The images of the data that a variant's main latent puts nearest to a picture, and near-duplicates in the data.

``python -m lib neighbors picture.png --variant simclr``, ``python -m lib neighbors --duplicates``.
"""

from pathlib import Path

import numpy
import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from lib.data.folders import read_pictures
from lib.data.store import IMAGES_FILE, load_data
from lib.evaluate.embeddings import embed_images
from lib.evaluate.galleries import NEAR_DUPLICATE, near_duplicates, unit_pixels
from lib.methods.export import encoder_file, load_method
from lib.report.figures import readable, save_figure
from lib.runtime.chunks import chunks
from lib.runtime.errors import UserError, clipped, printable
from lib.runtime.files import read_arrays, write_table
from lib.runtime.machine import read_machine
from lib.trace import require_locked

MOST = 20  # pictures of a sheet, lines of near-duplicates
LONGEST = 18  # characters of a name under a picture


def neighbors(given: str, variant: str, to: Path, count: int) -> list[str]:
    """Write a contact sheet of the ``count`` images that are nearest by the cosine of the main latent; returns lines.

    They are looked for among the images that the stage ``embed`` wrote. A UserError says that by dvc.lock it did not
    write this file from this encoder and these images.
    """
    method, about = load_method(encoder_file(variant))
    names, pixels = read_pictures(given, about["data"]["image_size"])
    if len(names) > MOST:
        raise UserError(f"{given} holds {len(names)} pictures; allowed: at most {MOST} on a sheet")
    data, path = load_data(IMAGES_FILE), Path("data/embeddings") / f"{variant}.npz"
    if data.about["checksum"] != about["data"]["checksum"]:
        raise UserError(f"{encoder_file(variant)} was trained on other images than {IMAGES_FILE} holds; dvc repro")
    arrays = read_arrays(path)
    require_locked(f"embed@{variant}", path, encoder_file(variant), IMAGES_FILE)
    images, labels, files = data.shown()
    stored = functional.normalize(torch.from_numpy(arrays[latent := arrays["latents"][0]]))
    found = embed_images(method, torch.from_numpy(pixels), names, about["data"], read_machine(alone=True))[latent]
    queries = functional.normalize(torch.from_numpy(found))
    similarity, nearest = (queries @ stored.T).topk(min(count, len(stored)), dim=1)  # [n, count] each
    lines, rows = [], []
    for number, name in enumerate(names):
        lines.append(f"{printable(name)}: nearest of {len(stored):,} images by {variant}, latent {latent}")
        cells = [(pixels[number], [name, "given"])]
        for place, value in zip(nearest[number].tolist(), similarity[number].tolist()):
            label = [data.classes[labels[place]]] if data.classes else []
            lines.append("  ".join([f"{value:7.4f}", printable(files[place]), *label]))
            cells.append((images[place].numpy(), [files[place], *label, f"{value:.3f}"]))
        rows.append(cells)
    save_figure(to, _sheet, rows)
    return [*lines, f"written: {to}"]


def _sheet(rows: list[list[tuple[numpy.ndarray, list[str]]]]) -> Figure:
    """A line for each picture, uint8 [3, S, S] with what is said of it: first the given one, then its neighbors."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(1.4 * columns, 1.9 * len(rows)))
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, cells in zip(panels, rows):
        for panel, (image, words) in zip(line, cells):
            panel.imshow(image.transpose(1, 2, 0))
            panel.set_xlabel("\n".join(readable([clipped(word, LONGEST) for word in words])), fontsize=7)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(visible=words[-1] == "given", linewidth=2)
    return figure


def duplicates(images: Tensor) -> pandas.DataFrame:
    """Images uint8 [N, 3, S, S] whose pixels correlate above `NEAR_DUPLICATE` with an earlier one's.

    Rows of ``image``, the ``other``, most alike of the earlier ones, and the ``correlation``.
    """
    later = near_duplicates(images).nonzero().flatten()
    most, other = torch.full((len(later),), -2.0), torch.zeros(len(later), dtype=torch.int64)
    for part in chunks(len(images), images[0].numel()):
        columns, pixels = torch.arange(part.start, part.stop), unit_pixels(images[part])
        for rows in torch.arange(len(later)).split(1024):
            alike = unit_pixels(images[later[rows]]) @ pixels.T
            best, place = alike.masked_fill(columns >= later[rows, None], -2.0).max(1)
            closer = best > most[rows]
            most[rows] = torch.where(closer, best, most[rows])
            other[rows] = torch.where(closer, columns[place], other[rows])
    return pandas.DataFrame({"image": later, "other": other, "correlation": most}).sort_values(
        "correlation", ascending=False, kind="stable"
    )


def tell_duplicates(to: Path | None) -> list[str]:
    data = load_data(IMAGES_FILE)
    images, files = torch.cat([data.train_images, data.test_images]), numpy.array(data.files)
    frame = duplicates(images)
    frame = frame.assign(image=files[frame["image"]], other=files[frame["other"]]).round(4)
    pairs = zip(*(frame[column][:MOST].tolist() for column in ("correlation", "image", "other")))
    lines = [f"{value:.4f}  {printable(image)}  {printable(other)}" for value, image, other in pairs]
    if to:
        write_table(to, frame)
    said = f"{len(frame):,} of {len(images):,} images are nearly the same as an earlier one (pixels correlate above "
    said += f"{NEAR_DUPLICATE})" + f"; the first {MOST} are shown" * (len(frame) > MOST)
    return [said, *lines, *([f"written: {to}"] if to else [])]
