"""Latents of any pictures by a trained variant: ``python -m lib embed FOLDER --variant simclr --to FILE.csv``."""

from importlib.util import find_spec
from pathlib import Path

import pandas
import torch

from lib.data.folders import read_pictures
from lib.evaluate.embeddings import Arrays, embed_images
from lib.methods.export import encoder_file, load_method
from lib.runtime.errors import UserError
from lib.runtime.files import require_room, size, write_arrays, write_bytes, write_table
from lib.runtime.machine import read_machine

KINDS = (".csv", ".npz", ".parquet")


def embed(pictures: str, variant: str, to: Path, on_bad_image: str = "refuse") -> str:
    """Write ``to``; returns what was done in a line. A UserError is raised before anything is computed.

    The npz holds every latent and projection as the stage ``embed`` writes them. In the others a line is a picture: its
    ``file``, then each latent, in CSV as columns ``h_0``, ``h_1`` and so on, in Parquet as one column of lists.
    """
    if to.suffix not in KINDS:
        raise UserError(f"--to is {to}; allowed: a file that ends in {', '.join(KINDS)}")
    if to.suffix == ".parquet" and not find_spec("pyarrow"):
        raise UserError("Parquet needs the package pyarrow, which is not there: pip install pyarrow, or name a .csv")
    require_room(to.parent)
    method, about = load_method(encoder_file(variant))
    remedy = ", or give --on-bad-image skip"
    files, pixels = read_pictures(pictures, about["data"]["image_size"], on_bad_image, remedy)
    arrays = embed_images(method, torch.from_numpy(pixels), files, about["data"], read_machine(alone=True))
    if to.suffix == ".npz":
        write_arrays(to, arrays)
    elif to.suffix == ".csv":
        write_table(to, table(arrays))
    else:
        latents = {name: list(arrays[name]) for name in arrays["latents"].tolist()}
        frame = pandas.DataFrame({"file": files, **latents})
        write_bytes(to, lambda file: frame.to_parquet(file, engine="pyarrow", index=False))
    widths = ", ".join(f"{name} of {arrays[name].shape[1]}" for name in arrays["latents"].tolist())
    return f"written: {to}, {size(to.stat().st_size)}: {len(files):,} pictures by {variant}, {widths} numbers"


def table(arrays: Arrays) -> pandas.DataFrame:
    """A line for each picture, a column for each number of its latents."""
    latents = [pandas.DataFrame(arrays[name]).add_prefix(f"{name}_") for name in arrays["latents"].tolist()]
    return pandas.concat([pandas.DataFrame({"file": arrays["files"]}), *latents], axis=1)
