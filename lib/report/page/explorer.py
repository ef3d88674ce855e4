"""What the latent explorer holds: coordinates and neighbors of each latent, and one sheet of thumbnails."""

import base64
import io
import math
from collections.abc import Iterator
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


def all_latents(groups: Groups) -> list[tuple[str, str]]:
    """Variant and latent in the order of the page: main latents, best first, then further ones, then further seeds."""
    places = [
        ((seed, place, rank), (record.variant, row["latent"]))
        for rank, members in enumerate(ranked(groups).values())
        for seed, record in enumerate(members)
        for place, row in enumerate(row for row in record.rows if row["space"] == "latent")
    ]
    return [latent for _, latent in sorted(places)]


def shown_points(latents: list[tuple[str, str]], root: Path) -> dict[str, numpy.ndarray]:
    """Labels, rows of the test split and class names: the same for all variants, or the page cannot link them."""
    shown: dict[str, numpy.ndarray] = {}
    for variant in dict.fromkeys(variant for variant, _ in latents):
        arrays = read_arrays(root / f"data/tsne/{variant}.npz")
        shown = shown or {name: arrays[name] for name in BESIDE}
        if not numpy.array_equal(shown["indices"], arrays["indices"]):
            raise UserError(f"data/tsne/{variant}.npz shows other images than {latents[0][0]}.npz; run dvc repro")
    return shown


def latent_names(latents: list[tuple[str, str]]) -> list[str]:
    """As the tables call them: the latent is named where its variant has several."""
    variants = [variant for variant, _ in latents]
    return [variant if variants.count(variant) == 1 else f"{variant} · {latent}" for variant, latent in latents]


def planes(latents: list[tuple[str, str]], root: Path) -> Iterator[dict[str, Any]]:
    """For each latent its name, a remark, 2-D coordinates [P, 2] and the nearest points [P, k] by cosine, encoded."""
    for name, (variant, latent) in zip(latent_names(latents), latents):
        arrays = read_arrays(root / f"data/tsne/{variant}.npz")
        features = read_arrays(root / f"data/embeddings/{variant}.npz")[latent][arrays["indices"]]
        yield {
            "name": name,
            "remark": remarks(arrays[latent], ()).strip(" -"),
            "xy": encode(squared(arrays[latent])),
            "near": encode(nearest(features, NEIGHBORS)),
        }


def squared(coordinates: numpy.ndarray) -> numpy.ndarray:
    """Coordinates [P, 2] as whole steps within a square, in its middle; both axes have one scale."""
    low, high = coordinates.min(0), coordinates.max(0)
    side = float((high - low).max()) or 1.0
    return numpy.rint(((coordinates - (low + high) / 2) / side + 0.5) * FINEST)


def encode(numbers: numpy.ndarray) -> dict[str, Any]:
    """Whole numbers as base64 of little-endian ``bits``: 16, or 32 where one is larger."""
    bits = 16 if numbers.max() <= FINEST else 32
    return {"bits": bits, "base64": base64.b64encode(numbers.astype(f"<u{bits // 8}").tobytes()).decode()}


def thumbnails(images: numpy.ndarray) -> dict[str, Any]:
    """One WebP picture of images uint8 [P, 3, S, S], row by row: its URI, ``columns``, and the size of a ``tile``."""
    count, size = len(images), images.shape[-1]
    tile, columns = min(size, math.isqrt(SHEET_PIXELS // count)), math.ceil(math.sqrt(count))
    sheet = Image.new("RGB", (columns * tile, -(-count // columns) * tile))
    for number, pixels in enumerate(images.transpose(0, 2, 3, 1)):
        picture = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BOX)
        sheet.paste(picture, (number % columns * tile, number // columns * tile))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=70, method=4)
    uri = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"uri": uri, "columns": columns, "tile": tile}


def class_looks(classes: list[str]) -> list[dict[str, str]]:
    """Name, color and marker of each class; the color is that of the t-SNE pictures."""
    markers = list(MARKERS)
    return [
        {"name": name, "color": color, "marker": markers[number % len(markers)]}
        for number, (name, color) in enumerate(zip(classes, class_colors(len(classes))))
    ]
