"""labels.csv: the classes of pictures that lie in one folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from lib.runtime.errors import UserError, one_line, shown

LABELS = "labels.csv"
Parts = tuple[str, ...]  # of a path


def path_of(name: Parts) -> str:
    """As text that any file can hold: bytes of a name that are not UTF-8 are escaped."""
    return "/".join(name).encode("utf-8", "backslashreplace").decode()


def read_labels(file: Path, names: Sequence[Parts], where: str) -> dict[Parts, str]:
    """The class of each of ``names``, paths below the file's folder, by its columns ``file`` and ``label``.

    Nothing where the file is not there; a UserError says that a picture has no line, or a line no picture.
    """
    if not file.is_file():
        return {}
    kinds: Any = {"dtype": str, "keep_default_na": False, "index_col": False, "skipinitialspace": True}
    try:
        frame = pandas.read_csv(file, encoding="utf-8-sig", **kinds)[["file", "label"]].fillna("")
        frame["label"] = frame["label"].str.strip()
    except (ValueError, KeyError, OSError) as error:
        how = "a first line file,label, then one for each picture, in UTF-8"
        raise UserError(f"{where}: {LABELS} cannot be read ({one_line(error)}); allowed: {how}") from None
    pictures = {path_of(name): name for name in names}
    given = dict(zip(frame["file"], frame["label"]))
    for wrong, what in (
        (given.keys() - pictures, f"where no picture is; {shown(min(pictures))} is one"),
        (pictures.keys() - given, "has no line; give every picture a label, or remove the file"),
        (set(frame["file"][frame["file"].duplicated()]), "has several lines"),
        ({name for name, label in given.items() if not label}, "has an empty label"),
    ):
        if wrong:
            raise UserError(f"{where}: {LABELS}: {shown(min(wrong))} {what}")
    return {pictures[name]: label for name, label in given.items()}
