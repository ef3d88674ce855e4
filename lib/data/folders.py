"""Class folders of pictures, in a directory, a zip or a tar.

Two layouts: ``train/<class>/<image>`` with ``test/<class>/<image>``, or ``<class>/<image>`` with a test
split drawn from the seed. One folder around everything is looked through. Classes and images are sorted by name.
"""

import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import PurePosixPath

import numpy

from lib.data.archives import Tree, open_tree
from lib.data.fetch import checksum, user_path
from lib.data.pixels import RESIZING, SUFFIXES, blank, convert
from lib.data.split import TEST_SHARE, stratified
from lib.data.store import RawDataset
from lib.runtime.errors import UserError, shown

SPLITS = ("train", "test")
NAMED = 20  # skipped images that the provenance names
LONGEST_CLASS = 100  # characters, what a legend has room for
LAYOUTS = "train/<class>/<image> with test/<class>/<image>, or <class>/<image>"


def read_folders(given: str, size: int, seed: int, on_bad_image: str = "refuse") -> RawDataset:
    """Class folders at ``given`` as RGB squares; ``seed`` is used for a layout without a test split.

    With ``on_bad_image`` "skip", images that cannot be read are left out as if they had not been there, and
    the provenance counts and names them.

    Raises:
        UserError: nothing there, neither layout, train and test of different classes, a class without
            images, or ("refuse") a damaged image.
    """
    path = user_path(given)
    if path is None:
        raise UserError(
            f"params.yaml: images_path is {shown(given)}, where nothing is that can be read; allowed: a "
            "folder, zip or tar, absolute or relative to the repository's folder"
        )
    with open_tree(path) as tree:
        names, ignored = pick_images(tree.names)
        if not names:
            raise UserError(f"{path.name} holds no images; allowed: {', '.join(sorted(SUFFIXES))}")
        train, test, drawn = arrange(names, tree.folders, path.name, seed)
        images, conversions, bad = _converted(tree, [*train, *test], size)
        if bad:
            if on_bad_image != "skip":
                raise UserError(_cannot_be_read(path.name, bad, len(names)))
            train, test = _without(bad, names, tree.folders, path.name, seed)
            images, conversions, _ = _converted(tree, [*train, *test], size)
    provenance = {"ignored": ignored, "resized": RESIZING, "converted": conversions}
    if tree.kind == "archive":
        provenance["archive_checksum"] = checksum(path)
    if drawn:
        provenance["test_split"] = f"{TEST_SHARE:.0%} of every class, drawn from seed {seed}"
    if bad:
        provenance["skipped"] = {"count": len(bad), "first": list(bad)[:NAMED]}
    _tell(conversions, bad, len(names))
    classes = sorted({PurePosixPath(name).parent.name for name in train})
    labels = [numpy.array([classes.index(PurePosixPath(name).parent.name) for name in part]) for part in (train, test)]
    return RawDataset(
        images[: len(train)],
        labels[0],
        images[len(train) :],
        labels[1],
        classes,
        source=f"{tree.kind} {path.resolve().name}",
        provenance=provenance,
    )


def pick_images(names: list[str]) -> tuple[list[str], dict[str, int]]:
    """The names of images, and how many other files there are by extension (or "hidden")."""
    images, ignored = [], Counter()
    for name in names:
        path = PurePosixPath(name)
        if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
            ignored["hidden"] += 1
        elif path.suffix.lower() in SUFFIXES:
            images.append(name)
        else:
            ignored[path.suffix.lower() or "no extension"] += 1
    return images, dict(sorted(ignored.items()))


def arrange(names: list[str], folders: Collection[str], where: str, seed: int) -> tuple[list[str], list[str], bool]:
    """Training names, test names, each sorted by (class, name), and whether the split was drawn.

    Raises:
        UserError: neither layout, or classes that do not suit; ``folders`` tells of a class without images.
    """
    paths = {name: PurePosixPath(name).parts for name in sorted(names, key=lambda name: name.split("/"))}
    tops = {parts[0] for parts in paths.values()}
    inside = 0
    if len(tops) == 1 and not tops & set(SPLITS) and min(map(len, paths.values())) > 2:
        inside = 1
        folders = [folder for folder in folders if folder.split("/")[0] in tops]
        paths = {name: parts[1:] for name, parts in paths.items()}
        tops = {parts[0] for parts in paths.values()}
    depth = 3 if max(map(len, paths.values())) > 2 and tops & set(SPLITS) else 2
    for name, parts in paths.items():
        if len(parts) != depth or (depth == 3 and parts[0] not in SPLITS):
            raise UserError(f"{where}: {shown(name)} is out of place; allowed: {LAYOUTS}; move or remove it")
    if depth == 3 and len(tops) == 1:
        raise UserError(f"{where} has images in a folder {tops.pop()} and in no other; allowed: {LAYOUTS}")
    _usable_classes(
        where, [parts[:-1] for parts in paths.values()], [PurePosixPath(folder).parts[inside:] for folder in folders]
    )
    if depth == 2:
        return *_drawn(paths, where, seed), True
    train, test = ([name for name, parts in paths.items() if parts[0] == split] for split in SPLITS)
    _same_classes(where, *({paths[name][1] for name in part} for part in (train, test)))
    return train, test, False


def _usable_classes(where: str, filled: list[tuple[str, ...]], folders: list[tuple[str, ...]]) -> None:
    """Refuse a class folder without images, and a class whose name cannot be told or shown.

    Both lists hold paths of folders in parts; ``filled`` are those with images, all of one depth.
    """
    depth, known = len(filled[0]), set(filled)
    for parts in sorted(folders):
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if len(parts) == depth and parts not in known and not hidden and (depth == 1 or parts[0] in SPLITS):
            raise UserError(f"{where}: class folder {shown('/'.join(parts))} holds no images; put some in or remove it")
    spelled: dict[str, str] = {}
    for name in sorted({parts[-1] for parts in filled}):
        if not name.isprintable():
            raise UserError(f"{where}: class folder {shown(name)} has a name that cannot be printed; rename it")
        if len(name) > LONGEST_CLASS:
            raise UserError(
                f"{where}: class folder {shown(name)} has a name of {len(name)} characters; allowed: "
                f"{LONGEST_CLASS}; rename it"
            )
        other = spelled.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise UserError(
                f"{where}: class folders {other!a} and {name!a} are one name in two spellings of "
                "Unicode; rename one like the other"
            )


def _drawn(paths: dict[str, tuple[str, ...]], where: str, seed: int) -> tuple[list[str], list[str]]:
    names = list(paths)
    counts = Counter(parts[0] for parts in paths.values())
    for name, count in counts.items():
        if count < 2:
            raise UserError(
                f"{where}: class {shown(name)} has one image; at least two are needed, one of them for "
                "test; add one or remove the class"
            )
    labels = numpy.unique([parts[0] for parts in paths.values()], return_inverse=True)[1]
    test = set(stratified(labels, TEST_SHARE, seed, "test split").tolist())
    return [name for index, name in enumerate(names) if index not in test], [names[index] for index in sorted(test)]


def _same_classes(where: str, train: set[str], test: set[str]) -> None:
    for split, other, extra in (("train", "test", sorted(train - test)), ("test", "train", sorted(test - train))):
        if extra:
            raise UserError(
                f"{where}: {split} has classes that {other} has no image of: {_listed(extra, 5)}; both "
                "need the same: add images or remove the class"
            )


def _converted(tree: Tree, names: list[str], size: int) -> tuple[numpy.ndarray, dict[str, int], dict[str, str]]:
    """uint8 [N, 3, size, size] in the order of ``names``, read in the order that suits the archive.

    Also how many images had which conversion, and why each one that cannot be read cannot (its row is undefined).
    """
    images, counts, bad = blank(len(names), size), Counter(), {}
    place = {name: index for index, name in enumerate(names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks about metadata; damage and size are errors of their own
        for name, content in tree.contents(names):
            try:
                images[place[name]], conversions = convert(content, size)
                counts.update(conversions)
            except ValueError as error:
                bad[name] = str(error)
    return images, dict(sorted(counts.items())), dict(sorted(bad.items()))


def _without(
    bad: Collection[str], names: list[str], folders: Collection[str], where: str, seed: int
) -> tuple[list[str], list[str]]:
    """The training and test names that remain; a class or split may not vanish with its bad images."""
    kept = [name for name in names if name not in bad]
    gone = {PurePosixPath(name).parent for name in bad} - {PurePosixPath(name).parent for name in kept}
    if gone:
        raise UserError(
            f"{where}: none of the images in {shown(min(map(str, gone)))} can be read; mend them or remove the folder"
        )
    return arrange(kept, folders, where, seed)[:2]


def _cannot_be_read(where: str, bad: dict[str, str], count: int) -> str:
    first, *others = bad
    also = f"; nor can {len(others)} more: {_listed(others, 3)}" if others else ""
    return (
        f"{where}: {first} cannot be read as an image: {bad[first]}{also} ({len(bad)} of {count} images); mend or "
        "remove what is bad, or set on_bad_image: skip in params.yaml"
    )


def _tell(conversions: dict[str, int], bad: dict[str, str], count: int) -> None:
    if conversions:
        print("converted: " + ", ".join(f"{what} ({number})" for what, number in conversions.items()), flush=True)
    if bad:
        named = _listed([f"{shown(name)} ({reason})" for name, reason in bad.items()], 3)
        print(f"skipped, as on_bad_image says: {len(bad)} of {count} images that cannot be read: {named}", flush=True)


def _listed(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
