"""A latent's points for other explorers: ``python -m lib explore simclr``.

Embedding Atlas and Hugging Face's datasets read the Parquet file, TensorBoard's projector the folder. Neither is needed
here.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from lib.data.store import IMAGES_FILE, load_data
from lib.evaluate.neighbors import nearest
from lib.report.figures_tsne import BESIDE
from lib.report.page.explorer import thumbnails
from lib.runtime.errors import UserError
from lib.runtime.files import read_arrays, require_file, write_bytes, write_text
from lib.trace import require_locked

NEIGHBORS = 10
COLUMNS = "--x x --y y --neighbors neighbors --image picture"
PROJECTOR = """embeddings {{
  tensor_name: "{name}"
  tensor_path: "vectors.tsv"
  metadata_path: "metadata.tsv"
  sprite {{ image_path: "sprite.png" single_image_dim: {tile} single_image_dim: {tile} }}
}}
"""


def explore(variant: str, latent: str | None, folder: Path, root: Path = Path()) -> int:
    """Write points.parquet and the projector's files of one latent, by default the main one; returns their count."""
    arrays = read_arrays(root / f"data/tsne/{variant}.npz")
    latents = [name for name in arrays if name not in BESIDE]
    latent = latent or latents[0]
    if latent not in latents:
        raise UserError(f"{variant} has no 2-D embedding of {latent}; latents: {', '.join(latents)}")
    rows, names = arrays["indices"], arrays["classes"]
    classes = names[arrays["labels"]] if len(names) else numpy.full(len(rows), "")
    features = read_arrays(root / f"data/embeddings/{variant}.npz")[latent][rows]
    images = load_data(root / "data/images.safetensors").shown()[0].numpy()[rows]
    near, distances = nearest(features, NEIGHBORS)
    points = {
        "variant": [variant] * len(rows),
        "latent": [latent] * len(rows),
        "image": rows,
        "class": classes,
        "x": arrays[latent][:, 0],
        "y": arrays[latent][:, 1],
        "neighbors": [{"ids": ids, "distances": far} for ids, far in zip(near.tolist(), distances.tolist())],
        "picture": [{"bytes": png(image), "path": None} for image in images],
    }
    write_parquet(folder / "points.parquet", points)
    sheet, tile = thumbnails(images)
    write_bytes(folder / "sprite.png", lambda file: sheet.save(file, "PNG"))
    write_text(folder / "vectors.tsv", "".join("\t".join(map("{:.6g}".format, row)) + "\n" for row in features))
    lines = zip(rows, (" ".join(name.split()) for name in classes.tolist()))
    write_text(folder / "metadata.tsv", "class\timage\n" + "".join(f"{name}\t{row}\n" for row, name in lines))
    write_text(folder / "projector_config.pbtxt", PROJECTOR.format(name=f"{variant} {latent}", tile=tile))
    return len(rows)


def write_parquet(path: Path, points: Mapping[str, Any]) -> None:
    """One row per point; pictures are PNG files as Hugging Face's Image has them, neighbors are rows of this file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("pyarrow is not installed, which writes Parquet; run pip install 'pyarrow>=15'") from None
    features = {"info": {"features": {"picture": {"_type": "Image"}}}}
    table = pyarrow.table(points).replace_schema_metadata({"huggingface": json.dumps(features)})
    write_bytes(path, lambda file: parquet.write_table(table, file))


def png(image: numpy.ndarray) -> bytes:
    """A picture uint8 [3, S, S] as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def written_points(variant: str, latent: str | None, folder: Path) -> str:
    """`explore` of outputs that are as dvc.lock has them; returns how viewers open them."""
    embedded, plane = (Path(f"data/{kind}/{variant}.npz") for kind in ("embeddings", "tsne"))
    for path in (plane, embedded, IMAGES_FILE):
        require_file(path)
    require_locked(f"tsne@{variant}", plane, embedded)
    require_locked(f"embed@{variant}", embedded, IMAGES_FILE)
    count = explore(variant, latent, folder)
    return f"""{count} points written to {folder}. In an environment of its own:
  pip install embedding-atlas; embedding-atlas {folder}/points.parquet {COLUMNS}
  pip install tensorboard; tensorboard --logdir {folder}"""
