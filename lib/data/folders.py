"""Pictures in a folder, a zip or a tar, in class folders or without classes.

Two layouts with classes: ``train/<class>/<image>`` with ``test/<class>/<image>``, or ``<class>/<image>`` with a test
split drawn from a fixed seed. Pictures in one folder, or in ``train`` and ``test``, have no classes but those that a
labels.csv gives them. One folder around everything is looked through. Classes and images are sorted by name.
"""

import hashlib
import os
import unicodedata
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy

from lib.data.labels import LABELS, Parts, path_of, read_labels
from lib.data.pixels import FORMATS, IMAGE_NAME, RESIZING, blank, decode
from lib.data.split import SEED, TEST_SHARE, stratified
from lib.data.store import RawDataset
from lib.data.unpack import unpacked, user_path
from lib.runtime.errors import UserError, shown
from lib.runtime.progress import StepProgress

SPLITS = ("train", "test")
DEEPEST = 6  # folders below the first: ends the walk where a link leads back up
NAMED = 20  # skipped images that the provenance names
LONGEST_CLASS = 100  # characters, what a legend has room for
LAYOUTS = "train/<class>/<image> with test/<class>/<image>, <class>/<image>, or images without classes in one folder"


class Names(NamedTuple):
    """How errors name what the user set: keys of params.yaml, or the options of a command."""

    path: str = "images_path"
    other_path: str = "images_path (by an absolute path for dvc exp run --temp and the queue)"
    size: str = "image_size in params.yaml"
    skip: str = "set on_bad_image: skip in params.yaml"


IN_PARAMS = Names()


def read_folders(images_path: str, size: int, on_bad_image: str = "refuse", named: Names = IN_PARAMS) -> RawDataset:
    """Pictures at ``images_path``, a folder, zip or tar, as RGB squares; without classes their labels are -1.

    Images that cannot be read are refused, or, with ``on_bad_image`` "skip", left out as if they had not been there,
    and the provenance counts and names them. A UserError names whatever else does not suit, by the words of ``named``.
    """
    path = _find(images_path, named)
    where = path.resolve().name
    with unpacked(path) as root:
        found, folders, ignored = _walk(root, where)
        root, names, folders = _within(root, found, folders)
        flat = _flat(names, folders)
        if not flat and (root / LABELS).is_file():
            how = "remove it, or put the pictures into one folder"
            raise UserError(f"{where}: {LABELS} lies beside class folders, whose names are the labels; {how}")
        labels = read_labels(root / LABELS, names, where) if flat else {name: name[-2] for name in names if name[1:]}
        train, test, drawn = arrange(names, labels, folders, flat, where)
        images, conversions, bad = _decode_all(root, [*train, *test], size, named)
    provenance: dict[str, Any] = {"ignored": ignored, "resized": RESIZING, "converted": conversions}
    if conversions:
        print("converted: " + ", ".join(f"{what} ({number})" for what, number in conversions.items()), flush=True)
    if bad:
        _refuse_or_tell(bad, len(names), where, on_bad_image, f", or {named.skip}")
        # the splits are those of the images that remain
        rows = {name: row for row, name in enumerate([*train, *test])}
        train, test, drawn = arrange([name for name in names if name not in bad], labels, folders, flat, where)
        images = images[[rows[name] for name in (*train, *test)]]
        provenance["skipped"] = {"count": len(bad), "first": ["/".join(name) for name in list(bad)[:NAMED]]}
    if drawn:
        of = "every class" if labels else "the images"
        provenance["test_split"] = f"{TEST_SHARE:.0%} of {of}, drawn from seed {SEED}"
    if path.is_file():
        with open(path, "rb") as file:
            provenance["archive_checksum"] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    classes, numbers = [], numpy.full(len(images), -1)
    if labels:
        unique, numbers = numpy.unique([labels[name] for name in (*train, *test)], return_inverse=True)
        classes = unique.tolist()
    parts = (images[: len(train)], numbers[: len(train)], images[len(train) :], numbers[len(train) :])
    source = f"{'archive' if path.is_file() else 'folder'} {where}"
    return RawDataset(*parts, classes, source, provenance, [path_of(name) for name in (*train, *test)])


def read_pictures(
    given: str, size: int, on_bad_image: str = "refuse", remedy: str = ""
) -> tuple[list[str], numpy.ndarray]:
    """A picture, or every one below a folder or in a zip or tar: names sorted, and uint8 [N, 3, size, size].

    Those that cannot be read are refused, with the ``remedy`` of the caller, or skipped and told; a UserError also says
    that there are none.
    """
    path = user_path(given)
    if path is None:
        raise UserError(f"nothing that can be read is at {shown(given)}; name a picture, a folder, a zip or a tar")
    where, alone = path.resolve().name, path.is_file() and IMAGE_NAME.search(path.name)
    with nullcontext(path.parent) if alone else unpacked(path) as root:
        names: list[Parts] = [(path.name,)] if alone else sorted(_walk(root, where)[0])
        images, _, bad = _decode_all(root, names, size)
    if bad:
        _refuse_or_tell(bad, len(names), where, on_bad_image, remedy)
    kept = [row for row, name in enumerate(names) if name not in bad]
    if not kept:
        raise _no_images(where, "in folders of any names")
    return [path_of(names[row]) for row in kept], images[kept] if bad else images


def _refuse_or_tell(bad: dict[Parts, str], count: int, where: str, on_bad_image: str, remedy: str) -> None:
    named = _some([f"{shown('/'.join(name))} ({reason})" for name, reason in bad.items()], 3)
    told = f"{len(bad)} of {count} images cannot be read: {named}"
    if on_bad_image != "skip":
        raise UserError(f"{where}: {told}; mend or remove them{remedy}")
    print(f"skipped, as on_bad_image says: {told}", flush=True)


def _find(given: str, named: Names) -> Path:
    """What ``given`` names; a UserError says that nothing is there."""
    path = user_path(given)
    if path is None:
        raise UserError(f"{named.path} is {shown(given)}, where nothing is that can be read; name a folder, zip or tar")
    if path.is_dir() and all(name == "README.md" or _is_hidden(name) for name in os.listdir(path)):
        # So is data/pictures in DVC's temporary copy. What DVC does not see there must not be read from elsewhere: its
        # run cache would bring these pictures back when others have taken their place.
        raise UserError(f"{given} is empty; put {LAYOUTS} there, or name your folder, zip or tar by {named.other_path}")
    return path


def _walk(root: Path, where: str) -> tuple[list[Parts], list[Parts], dict[str, int]]:
    """Paths below ``root`` of images and of folders, and counts of other files."""
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
    return names, folders, dict(sorted((+ignored).items()))


def _within(root: Path, names: list[Parts], folders: list[Parts]) -> tuple[Path, list[Parts], list[Parts]]:
    """The folder that holds the layout, and the paths below it, of images sorted: one folder around all is left."""
    tops, depth = {parts[0] for parts in names}, min(map(len, names), default=0)
    around = depth > 2 or (depth == 2 and _flat(names, folders) and not (root / LABELS).is_file())
    if len(tops) == 1 and not tops & set(SPLITS) and around:
        names = [parts[1:] for parts in names]
        folders = [parts[1:] for parts in folders if parts[0] in tops]
        root /= tops.pop()
    return root, sorted(names), folders


def _flat(names: list[Parts], folders: list[Parts]) -> bool:
    """Whether images have no class folders: they lie in no folder, all in one, or in train and test."""
    tops, depths = {path[0] for path in (*names, *folders) if path}, set(map(len, names))
    return depths == {1} or (depths == {2} and (len(tops) == 1 or tops == set(SPLITS)))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def arrange(
    names: list[Parts], labels: dict[Parts, str], folders: list[Parts], flat: bool, where: str
) -> tuple[list[Parts], list[Parts], bool]:
    """Training names, test names, each sorted, and whether the split was drawn; ``flat``: there are no class folders.

    A UserError says that the layout or a class does not suit; ``folders`` tell of a class without images.
    """
    if not names:
        raise _no_images(where, f"as {LAYOUTS}")
    paths = [path for path in (*names, *folders) if path] if flat else [name for name in names if len(name) > 2]
    splits = {path[0] for path in paths} & set(SPLITS)
    if not flat:
        _check_layout(names, folders, bool(splits), where)
    _check_classes({labels[name] for name in names if labels}, where)
    if splits and not (flat and len(splits) == 1):
        train, test = ([name for name in names if name[0] == split] for split in SPLITS)
        if odd := sorted({labels[name] for name in train if labels} ^ {labels[name] for name in test if labels}):
            raise UserError(f"{where}: train and test differ in the classes {_some(odd, 5)}; both need images of each")
        if not (train and test):
            raise UserError(f"{where}: {SPLITS[bool(train)]} holds no images that can be read; put some in")
        return train, test, False
    classes, numbers = numpy.unique([labels.get(name, "") for name in names], return_inverse=True)
    if (counts := numpy.bincount(numbers)).min() < 2:
        one = f"class {shown(str(classes[counts.argmin()]))} has one image" if labels else "there is one image"
        raise UserError(f"{where}: {one}; add one for test{', or remove the class' * bool(labels)}")
    chosen = set(stratified(numbers, TEST_SHARE, "test split").tolist())
    train, test = ([name for row, name in enumerate(names) if (row in chosen) == tested] for tested in (False, True))
    return train, test, True


def _check_layout(names: list[Parts], folders: list[Parts], splits: bool, where: str) -> None:
    """Refuse an image that lies elsewhere than in a class folder, and a class folder without images."""
    depth = 3 if splits else 2
    for name in names:
        if len(name) != depth or (splits and name[0] not in SPLITS):
            raise UserError(f"{where}: {shown('/'.join(name))} is out of place; allowed: {LAYOUTS}; move or remove it")
    empty = {name for name in folders if len(name) == depth - 1 and (depth == 2 or name[0] in SPLITS)}
    if empty := empty - {name[:-1] for name in names}:
        label = shown("/".join(min(empty)))
        raise UserError(f"{where}: class folder {label} holds no images that can be read; put some in or remove it")


def _no_images(where: str, how: str) -> UserError:
    return UserError(f"{where} holds no images that can be read; allowed: {', '.join(FORMATS)}, {how}")


def _check_classes(labels: set[str], where: str) -> None:
    """Refuse a class whose name cannot be shown, or cannot be told from another's."""
    spelled: dict[str, str] = {}
    for label in sorted(labels):
        if not label.isprintable() or len(label) > LONGEST_CLASS:
            most = f"at most {LONGEST_CLASS} printable characters"
            raise UserError(f"{where}: class {shown(label)} needs another name; allowed: {most}")
        other = spelled.setdefault(unicodedata.normalize("NFC", label), label)
        if other != label:
            raise UserError(f"{where}: classes {other!a} and {label!a} are one name in two spellings; rename one")


def _decode_all(
    root: Path, names: list[Parts], size: int, named: Names = IN_PARAMS
) -> tuple[numpy.ndarray, dict[str, int], dict[Parts, str]]:
    """uint8 [N, 3, size, size] in the order of ``names``.

    Also how many images had which conversion, and why each one that cannot be read cannot (its row is undefined).
    """
    images, counts, bad = blank(len(names), size, named.size), Counter[str](), dict[Parts, str]()
    with warnings.catch_warnings(), StepProgress(f"reading {len(names):,} pictures", min(len(names), 100)) as progress:
        warnings.simplefilter("ignore")  # remarks about metadata; damage and size are errors of their own
        for row, name in enumerate(names):
            try:
                images[row], conversions = decode(root.joinpath(*name), size)
                counts.update(conversions)
            except ValueError as error:
                bad[name] = str(error)
            progress.reach((row + 1) / len(names))
    return images, dict(sorted(counts.items())), dict(sorted(bad.items()))


def _some(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
