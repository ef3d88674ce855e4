"""Official archives: found locally, or fetched once, and never used before their checksum agrees."""

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lib.runtime.errors import UserError, shown
from lib.runtime.files import whole_file

KEPT = Path("data/archives")
VARIABLE = "ENGRAM_ARCHIVE"
ALTERNATIVES = (
    f"set {VARIABLE} to a mirror's URL or to a local copy, or choose in params.yaml dataset: images "
    "(your own folder, zip or tar) or dataset: digits (nothing is fetched)"
)
LARGEST = 2**30  # bytes
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Official:
    """One published file; ``checksum`` is ``sha256:...`` or ``md5:...``, whichever is published."""

    name: str
    checksum: str
    urls: tuple[str, ...]


def find(official: Official) -> Path:
    """The checked file: what ENGRAM_ARCHIVE names, else the kept copy, else fetched and kept.

    Raises:
        UserError: it cannot be had, or its checksum differs.
    """
    return find_edition([official])[1]


def find_edition(editions: Sequence[Official]) -> tuple[Official, Path]:
    """One of several editions of the same data, and its checked file.

    ENGRAM_ARCHIVE decides: a file or URL that ends in an edition's name names that edition; in a folder, or a
    mirror's, the first edition that is there is taken. Without it the first edition is kept or fetched.

    Raises:
        UserError: none can be had, or its checksum differs.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if _is_url(given) and not _host(given):
        raise UserError(f"{VARIABLE} is not a usable URL; allowed: http(s)://host/folder, or a local path")
    if given and not _is_url(given):
        return _local(editions, given)
    wanted = _named(editions, urlsplit(given).path) if given else editions[:1]
    for official in wanted:
        kept = project_path(KEPT) / official.name
        if kept.is_file() and checksum(kept, official.checksum) == official.checksum:
            return official, kept
    return _fetch(
        [(official, url) for official in wanted for url in ((_join(given, official.name),) if given else official.urls)]
    )


def project_path(path: Path) -> Path:
    """A path in the main repository, also when DVC runs in a temporary copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")) / path


def user_path(given: str) -> Path | None:
    """A user's path: absolute, or relative to the working folder, else to the main repository; None if not there."""
    try:
        path = Path(given).expanduser()
        path = path if path.exists() or path.is_absolute() else project_path(path)
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a character that no path has
        return None


def checksum(path: Path, like: str = "sha256:") -> str:
    """A file's checksum as ``algorithm:hex``, by the algorithm that ``like`` starts with."""
    algorithm = like.split(":")[0]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{digest.hexdigest()}"


def _named(editions: Sequence[Official], path: str) -> Sequence[Official]:
    """The edition that a path's last part names, else all of them."""
    return [official for official in editions if official.name == path.rsplit("/", 1)[-1]] or editions


def _local(editions: Sequence[Official], given: str) -> tuple[Official, Path]:
    path, names = user_path(given), " or ".join(official.name for official in editions)
    if path is None:
        raise UserError(
            f"{VARIABLE} is {shown(given)}, where nothing is that can be read; it must name {names} or its folder"
        )
    if path.is_dir():
        path /= next((official.name for official in editions if (path / official.name).exists()), editions[0].name)
    wanted = _named(editions, path.as_posix())
    try:
        found = [checksum(path, official.checksum) for official in wanted]
    except OSError as error:
        raise UserError(
            f"{VARIABLE} is {shown(given)}, but {path.name} cannot be read there ({error.strerror}); "
            f"it must name {names} or its folder"
        ) from None
    for official, value in zip(wanted, found, strict=True):
        if value == official.checksum:
            return official, path
    raise UserError(f"{VARIABLE} is {shown(given)}: {_differs(path.name, found[0], wanted[0])}")


def _fetch(sources: Sequence[tuple[Official, str]]) -> tuple[Official, Path]:
    failures = []
    for official, url in sources:
        target = project_path(KEPT) / official.name
        try:
            with whole_file(target) as part:
                with open(part, "wb") as file:
                    for block in _blocks(url):
                        file.write(block)
                found = checksum(part, official.checksum)
                if found != official.checksum:
                    raise UserError(f"fetched from {_host(url)}: {_differs(official.name, found, official)}")
            return official, target
        except _Unreachable as error:
            failures.append(str(error))
    names = " or ".join(dict.fromkeys(official.name for official, _ in sources))
    raise UserError(f"cannot fetch {names} ({'; '.join(dict.fromkeys(failures))}); {ALTERNATIVES}")


class _Unreachable(Exception):
    """The network's failure, kept apart from the disk's."""


def _blocks(url: str) -> Iterator[bytes]:
    print(f"fetching {urlsplit(url).path.rsplit('/', 1)[-1]} from {_host(url)}", flush=True)
    left = LARGEST
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            while left > 0 and (block := answer.read(min(left, 2**20))):
                left -= len(block)
                yield block
    except http.client.HTTPException as error:  # its text may quote the URL
        raise _Unreachable(f"{_host(url)}: {type(error).__name__}") from None
    except OSError as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise _Unreachable(f"{_host(url)}: {reason}") from None


def _host(url: str) -> str:
    """What may be shown of a URL, which may hold a password; empty when it is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_url(given: str) -> bool:
    return given.startswith(("http://", "https://"))


def _join(base: str, name: str) -> str:
    """The file's own URL as it is, or the URL of the folder that holds it."""
    return base if urlsplit(base).path.endswith("/" + name) else f"{base.rstrip('/')}/{name}"


def _differs(name: str, found: str, official: Official) -> str:
    return f"{name} has {found}, the official {official.name} has {official.checksum}; get that file, unchanged"
