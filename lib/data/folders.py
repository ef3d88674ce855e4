"""Class folders of pictures, in a directory, a zip or a tar.

Two layouts: ``train/<class>/<image>`` with ``test/<class>/<image>``, or ``<class>/<image>`` with a test
split drawn from the seed. One folder around everything is looked through. Classes and images are sorted by name.
"""

import warnings
from collections import Counter
from pathlib import PurePosixPath

import numpy

from lib.data.archives import Tree, open_tree
from lib.data.fetch import checksum, user_path
from lib.data.pixels import RESIZING, SUFFIXES, blank, decode
from lib.data.split import TEST_SHARE, stratified
from lib.data.store import Pictures
from lib.errors import UserError

SPLITS = ("train", "test")
LAYOUTS = "train/<class>/<image> with test/<class>/<image>, or <class>/<image>"


def read_folders(given: str, size: int, seed: int) -> Pictures:
    """Class folders at ``given`` as RGB squares; ``seed`` is used for a layout without a test split.

    Raises:
        UserError: nothing there, neither layout, train and test of different classes, or a damaged image.
    """
    path = user_path(given)
    if not path.exists():
        raise UserError(f"params.yaml: images_path is {given!r}, where nothing is; give a folder, zip or tar, "
                        "absolute or relative to the repository's folder")
    with open_tree(path) as tree:
        names, ignored = pick_images(tree.names)
        if not names:
            raise UserError(f"{path.name} holds no images; allowed: {', '.join(sorted(SUFFIXES))}")
        train, test, drawn = arrange(names, path.name, seed)
        classes = sorted({PurePosixPath(name).parent.name for name in train})
        images = _decoded(tree, [*train, *test], size)
    provenance = {"ignored": ignored, "resized": RESIZING}
    if tree.kind == "archive":
        provenance["archive_checksum"] = checksum(path)
    if drawn:
        provenance["test_split"] = f"{TEST_SHARE:.0%} of every class, drawn from seed {seed}"
    labels = [numpy.array([classes.index(PurePosixPath(name).parent.name) for name in part]) for part in (train, test)]
    return Pictures(images[:len(train)], labels[0], images[len(train):], labels[1], classes,
                    source=f"{tree.kind} {path.resolve().name}", provenance=provenance)


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


def arrange(names: list[str], where: str, seed: int) -> tuple[list[str], list[str], bool]:
    """Training names, test names, each sorted by (class, name), and whether the split was drawn.

    Raises:
        UserError: neither layout, or classes that do not suit.
    """
    paths = {name: PurePosixPath(name).parts for name in sorted(names, key=lambda name: name.split("/"))}
    tops = {parts[0] for parts in paths.values()}
    if len(tops) == 1 and not tops & set(SPLITS) and min(map(len, paths.values())) > 2:
        paths = {name: parts[1:] for name, parts in paths.items()}
        tops = {parts[0] for parts in paths.values()}
    depth = 3 if max(map(len, paths.values())) > 2 and tops & set(SPLITS) else 2
    for name, parts in paths.items():
        if len(parts) != depth or (depth == 3 and parts[0] not in SPLITS):
            raise UserError(f"{where}: {name!r} is out of place; allowed: {LAYOUTS}")
        if not parts[-2].isprintable():
            raise UserError(f"{where}: class folder {parts[-2]!r} has a name that cannot be printed; rename it")
    if depth == 3 and len(tops) == 1:
        raise UserError(f"{where} has a folder {tops.pop()} and no other; allowed: {LAYOUTS}")
    if depth == 2:
        return *_drawn(paths, where, seed), True
    train, test = ([name for name, parts in paths.items() if parts[0] == split] for split in SPLITS)
    _same_classes(where, *({paths[name][1] for name in part} for part in (train, test)))
    return train, test, False


def _drawn(paths: dict[str, tuple[str, ...]], where: str, seed: int) -> tuple[list[str], list[str]]:
    names = list(paths)
    counts = Counter(parts[0] for parts in paths.values())
    for name, count in counts.items():
        if count < 2:
            raise UserError(f"{where}: class {name!r} has one image; at least two are needed, one of them for test")
    labels = numpy.unique([parts[0] for parts in paths.values()], return_inverse=True)[1]
    test = set(stratified(labels, TEST_SHARE, seed, "test split").tolist())
    return [name for index, name in enumerate(names) if index not in test], [names[index] for index in sorted(test)]


def _same_classes(where: str, train: set[str], test: set[str]) -> None:
    for split, other, extra in (("train", "test", sorted(train - test)), ("test", "train", sorted(test - train))):
        if extra:
            shown = ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
            raise UserError(f"{where}: {split} has classes that {other} has no image of: {shown}; both need the same")


def _decoded(tree: Tree, names: list[str], size: int) -> numpy.ndarray:
    """uint8 [N, 3, size, size] in the order of ``names``, read in the order that suits the archive."""
    images = blank(len(names), size)
    place = {name: index for index, name in enumerate(names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks about metadata; damage and size are errors of their own
        for name, content in tree.contents(names):
            try:
                images[place[name]] = decode(content, size)
            except ValueError as error:
                raise UserError(f"{tree.path.name}: {name} cannot be read as an image: {error}; "
                                "mend or remove it") from None
    return images
