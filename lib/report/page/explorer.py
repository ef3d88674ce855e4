"""What the latent explorer holds: coordinates and neighbors of each latent, and one sheet of thumbnails."""

import base64
import io
import math
from collections.abc import Collection, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from lib.evaluate.neighbors import nearest
from lib.report.figures_tsne import BESIDE, class_colors, remarks
from lib.report.records import Groups, ranked
from lib.runtime.errors import UserError
from lib.runtime.files import read_arrays

NEIGHBORS = 5
SHEET_PIXELS = 5000 * 32**2  # of all thumbnails together: fewer images are shown larger, up to their own size
FINEST = 2**16 - 1  # steps of a coordinate
# Bokeh's markers, and how text shows them
MARKERS = {"circle": "●", "square": "■", "triangle": "▲", "diamond": "◆"}
MARKERS |= {"inverted_triangle": "▼", "star": "★", "hex": "⬢", "plus": "✚"}


def read_planes(groups: Groups, root: Path) -> tuple[dict[str, numpy.ndarray], dict[tuple[str, str], numpy.ndarray]]:
    """What all share, labels, rows of the test split and class names; and 2-D coordinates [P, 2] by variant and latent.

    Main latents come first, best first, then further ones, then those of further seeds.
    """
    shown: dict[str, numpy.ndarray] = {}
    places = {}
    for rank, members in enumerate(ranked(groups).values()):
        for seed, record in enumerate(members):
            arrays = read_arrays(root / f"data/tsne/{record.variant}.npz")
            beside = {name: arrays.pop(name) for name in BESIDE}
            shown = shown or beside
            if not numpy.array_equal(shown["indices"], beside["indices"]):  # then no picture is the same in both
                raise UserError(f"data/tsne/{record.variant}.npz shows other images than the rest; run dvc repro")
            for place, (latent, coordinates) in enumerate(arrays.items()):
                places[seed, place, rank] = (record.variant, latent), coordinates
    return shown, dict(places[key] for key in sorted(places))


def latent_names(latents: Collection[tuple[str, str]]) -> list[str]:
    """As the tables call them: the latent is named where its variant has several."""
    variants = [variant for variant, _ in latents]
    return [variant if variants.count(variant) == 1 else f"{variant} · {latent}" for variant, latent in latents]


def planes(
    coordinates: dict[tuple[str, str], numpy.ndarray], rows: numpy.ndarray, root: Path
) -> Iterator[dict[str, Any]]:
    """Each latent's name, a remark, its coordinates and the nearest of ``rows`` [P] by cosine [P, k], encoded."""
    for name, ((variant, latent), plane) in zip(latent_names(coordinates), coordinates.items()):
        features = read_arrays(root / f"data/embeddings/{variant}.npz")[latent][rows]
        remark, near = remarks(plane, ()).strip(" -"), nearest(features, NEIGHBORS)[0]
        yield {"name": name, "remark": remark, "xy": encode(squared(plane)), "near": encode(near)}


def squared(coordinates: numpy.ndarray) -> numpy.ndarray:
    """Coordinates [P, 2] as whole steps within a square, in its middle; both axes have one scale."""
    low, high = coordinates.min(0), coordinates.max(0)
    side = float((high - low).max()) or 1.0
    return numpy.rint(((coordinates - (low + high) / 2) / side + 0.5) * FINEST)


def encode(numbers: numpy.ndarray) -> dict[str, Any]:
    """Whole numbers as base64 of little-endian ``bits``: 16, or 32 where one is larger."""
    bits = 16 if numbers.max() <= FINEST else 32
    return {"bits": bits, "base64": base64.b64encode(numbers.astype(f"<u{bits // 8}").tobytes()).decode()}


def thumbnails(images: numpy.ndarray) -> tuple[Image.Image, int]:
    """One square picture of images uint8 [P, 3, S, S], row by row, and the size of a tile in it.

    TensorBoard's projector takes any other for a square one, and shows wrong pictures.
    """
    count, size = len(images), images.shape[-1]
    tile, columns = min(size, math.isqrt(SHEET_PIXELS // count)), math.ceil(math.sqrt(count))
    sheet = Image.new("RGB", (columns * tile, columns * tile))
    for number, pixels in enumerate(images.transpose(0, 2, 3, 1)):
        picture = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BOX)
        sheet.paste(picture, (number % columns * tile, number // columns * tile))
    return sheet, tile


def webp(picture: Image.Image) -> str:
    """A picture as the URI of itself."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=70, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def class_looks(classes: list[str]) -> list[dict[str, str]]:
    """Name, color and marker of each class; the color is that of the t-SNE pictures."""
    looks = zip(classes, class_colors(len(classes)), cycle(MARKERS))
    return [{"name": name, "color": color, "marker": marker} for name, color, marker in looks]
