"""Class folders of pictures, in a folder, a zip or a tar.

Two layouts: ``train/<class>/<image>`` with ``test/<class>/<image>``, or ``<class>/<image>`` with a test split drawn
from a fixed seed. One folder around everything is looked through. Classes and images are sorted by name.
"""

import hashlib
import os
import unicodedata
import warnings
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

import numpy

from lib.data.pixels import FORMATS, IMAGE_NAME, RESIZING, blank, decode
from lib.data.split import SEED, TEST_SHARE, stratified
from lib.data.store import RawDataset
from lib.data.unpack import unpacked, user_path
from lib.runtime.errors import UserError, shown

SPLITS = ("train", "test")
DEEPEST = 6  # folders below the first: ends the walk where a link leads back up
NAMED = 20  # skipped images that the provenance names
LONGEST_CLASS = 100  # characters, what a legend has room for
LAYOUTS = "train/<class>/<image> with test/<class>/<image>, or <class>/<image>"
Parts = tuple[str, ...]  # of a path


def read_folders(images_path: str, size: int, on_bad_image: str = "refuse") -> RawDataset:
    """Class folders at ``images_path``, a folder, zip or tar, as RGB squares.

    Images that cannot be read are refused, or, with ``on_bad_image`` "skip", left out as if they had not been there,
    and the provenance counts and names them. A UserError names whatever else does not suit.
    """
    path = _find(images_path)
    where = path.resolve().name
    with unpacked(path) as root:
        root, names, folders, ignored = _walk(root, where)
        train, test, drawn = arrange(names, folders, where)
        images, conversions, bad = _decode_all(root, [*train, *test], size)
    provenance: dict[str, Any] = {"ignored": ignored, "resized": RESIZING, "converted": conversions}
    if conversions:
        print("converted: " + ", ".join(f"{what} ({number})" for what, number in conversions.items()), flush=True)
    if bad:
        named = _some([f"{shown('/'.join(name))} ({reason})" for name, reason in bad.items()], 3)
        told = f"{len(bad)} of {len(names)} images cannot be read: {named}"
        if on_bad_image != "skip":
            raise UserError(f"{where}: {told}; mend or remove them, or set on_bad_image: skip in params.yaml")
        print(f"skipped, as on_bad_image says: {told}", flush=True)
        # the splits are those of the images that remain
        rows = {name: row for row, name in enumerate([*train, *test])}
        train, test, drawn = arrange([name for name in names if name not in bad], folders, where)
        images = images[[rows[name] for name in (*train, *test)]]
        provenance["skipped"] = {"count": len(bad), "first": ["/".join(name) for name in list(bad)[:NAMED]]}
    if drawn:
        provenance["test_split"] = f"{TEST_SHARE:.0%} of every class, drawn from seed {SEED}"
    if path.is_file():
        with open(path, "rb") as file:
            provenance["archive_checksum"] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    classes, labels = numpy.unique([name[-2] for name in (*train, *test)], return_inverse=True)
    parts = (images[: len(train)], labels[: len(train)], images[len(train) :], labels[len(train) :])
    source = f"{'archive' if path.is_file() else 'folder'} {where}"
    return RawDataset(*parts, classes.tolist(), source, provenance)


def _find(given: str) -> Path:
    """What images_path names; a UserError says that nothing is there."""
    path = user_path(given)
    if path is None:
        raise UserError(f"images_path is {shown(given)}, where nothing is that can be read; name a folder, zip or tar")
    if path.is_dir() and all(name == "README.md" or _is_hidden(name) for name in os.listdir(path)):
        # So is data/pictures in DVC's temporary copy. What DVC does not see there must not be read from elsewhere: its
        # run cache would bring these pictures back when others have taken their place.
        how = "by images_path (by an absolute path for dvc exp run --temp and the queue)"
        raise UserError(f"{given} is empty; put {LAYOUTS} there, or name your folder, zip or tar {how}")
    return path


def _walk(root: Path, where: str) -> tuple[Path, list[Parts], list[Parts], dict[str, int]]:
    """The folder that holds the layout, paths below it of images (sorted) and of folders, and counts of other files."""
    names: list[Parts] = []
    folders: list[Parts] = []
    ignored: Counter[str] = Counter()

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {PurePath(error.filename).name} in {where}: {error.strerror}; make it readable")

    for folder, below, files in os.walk(root, onerror=refuse, followlinks=True):
        inside = Path(folder).relative_to(root).parts
        if len(inside) > DEEPEST:
            deep = shown("/".join(inside))
            raise UserError(f"{where}: folder {deep} is too deep, or a link leads back up; remove it")
        hidden = set(filter(_is_hidden, (*below, *files)))
        ignored["hidden"] += len(hidden)
        below[:] = [name for name in below if name not in hidden]
        folders += [(*inside, name) for name in below]
        for name in set(files) - hidden:
            if IMAGE_NAME.search(name):
                names.append((*inside, name))
            else:
                ignored[PurePath(name).suffix.lower() or "no extension"] += 1
    tops = {parts[0] for parts in names}
    if len(tops) == 1 and not tops & set(SPLITS) and min(map(len, names)) > 2:
        names = [parts[1:] for parts in names]
        folders = [parts[1:] for parts in folders if parts[0] in tops]
        root /= tops.pop()
    return root, sorted(names), folders, dict(sorted((+ignored).items()))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def arrange(names: list[Parts], folders: list[Parts], where: str) -> tuple[list[Parts], list[Parts], bool]:
    """Training names, test names, each sorted by (class, name), and whether the split was drawn.

    A UserError says that the layout or a class does not suit; ``folders`` tell of a class without images.
    """
    if not names:
        raise UserError(f"{where} holds no images that can be read; allowed: {', '.join(FORMATS)}, as {LAYOUTS}")
    splits = {name[0] for name in names if len(name) > 2} & set(SPLITS)
    depth = 3 if splits else 2
    for name in names:
        if len(name) != depth or (splits and name[0] not in SPLITS):
            raise UserError(f"{where}: {shown('/'.join(name))} is out of place; allowed: {LAYOUTS}; move or remove it")
    empty = {name for name in folders if len(name) == depth - 1 and (depth == 2 or name[0] in SPLITS)}
    if empty := empty - {name[:-1] for name in names}:
        label = shown("/".join(min(empty)))
        raise UserError(f"{where}: class folder {label} holds no images that can be read; put some in or remove it")
    _check_classes({name[-2] for name in names}, where)
    if splits:
        train, test = ([name for name in names if name[0] == split] for split in SPLITS)
        if odd := sorted({name[1] for name in train} ^ {name[1] for name in test}):
            raise UserError(f"{where}: train and test differ in the classes {_some(odd, 5)}; both need images of each")
        return train, test, False
    classes, labels = numpy.unique([name[0] for name in names], return_inverse=True)
    if (counts := numpy.bincount(labels)).min() < 2:
        label = shown(str(classes[counts.argmin()]))
        raise UserError(f"{where}: class {label} has one image; add one for test, or remove the class")
    chosen = set(stratified(labels, TEST_SHARE, "test split").tolist())
    train, test = ([name for row, name in enumerate(names) if (row in chosen) == tested] for tested in (False, True))
    return train, test, True


def _check_classes(labels: set[str], where: str) -> None:
    """Refuse a class whose name cannot be shown, or cannot be told from another's."""
    spelled: dict[str, str] = {}
    for label in sorted(labels):
        if not label.isprintable() or len(label) > LONGEST_CLASS:
            most = f"at most {LONGEST_CLASS} printable characters"
            raise UserError(f"{where}: class folder {shown(label)} needs another name; allowed: {most}")
        other = spelled.setdefault(unicodedata.normalize("NFC", label), label)
        if other != label:
            raise UserError(f"{where}: class folders {other!a} and {label!a} are one name in two spellings; rename one")


def _decode_all(root: Path, names: list[Parts], size: int) -> tuple[numpy.ndarray, dict[str, int], dict[Parts, str]]:
    """uint8 [N, 3, size, size] in the order of ``names``.

    Also how many images had which conversion, and why each one that cannot be read cannot (its row is undefined).
    """
    images, counts, bad = blank(len(names), size), Counter[str](), dict[Parts, str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks about metadata; damage and size are errors of their own
        for row, name in enumerate(names):
            try:
                images[row], conversions = decode(root.joinpath(*name), size)
                counts.update(conversions)
            except ValueError as error:
                bad[name] = str(error)
    return images, dict(sorted(counts.items())), dict(sorted(bad.items()))


def _some(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
