"""What every stage script shares: its arguments, the check of params.yaml, one-line errors, and the time it took."""

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.files import write_json
from lib.params.check import check_params
from lib.params.pretraining import load_params

TIMES_FOLDER = Path(".times")  # git-ignored; one file for each stage, replaced whole
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8  # of mallopt, as glibc's malloc.h numbers them
AHEAD = 2**28  # bytes that are asked for beyond what is needed
SIZES = ("dataset", "images_path", "image_size", "encoder")  # a time taken with another of these says little


def run_stage(stage: Callable[..., None], about: str, *, per_variant: bool = False) -> None:
    """Call ``stage(raw)`` or ``stage(raw, variant)`` with the checked, untyped params.yaml.

    A UserError ends the process with one line and status 1, an interrupt with one line and 130, SIGTERM with
    one line and 143.
    """
    signal.signal(signal.SIGTERM, _terminate)
    keep_memory()
    parser = argparse.ArgumentParser(description=about)
    if per_variant:
        parser.add_argument("variant", help="a key of variants in params.yaml")
    arguments = vars(parser.parse_args())
    started = time.monotonic()
    try:
        raw: dict[str, Any] = load_params()
        check_params(raw)
        stage(raw, **arguments)
        _record_time(time.monotonic() - started, raw)
    except UserError as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, Terminated) as stop:
        word, status = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
        print(f"{word}; give the same command again (a training goes on from its last checkpoint)", file=sys.stderr)
        sys.exit(status)


def keep_memory() -> None:
    """Freed memory stays with this process until it ends, where the C library is glibc; elsewhere nothing changes.

    glibc gives large blocks back at once, and the system hands each out again page by page, zeroed. A training step
    frees and asks for the same hundreds of megabytes every time. Threads that begin later share the main one's memory:
    heaps of their own would hold no block above 64 MiB.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    for key, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, AHEAD), (ARENA_MAX, 1)):
        mallopt(key, value)


class Terminated(BaseException):
    """SIGTERM; like KeyboardInterrupt no Exception, so that nothing takes it for an error of its own."""


def _terminate(*_: object) -> None:
    raise Terminated


def _record_time(seconds: float, raw: dict[str, Any]) -> None:
    """Keep how long DVC's stage took, for ``python -m lib.plan``, beside the checkpoints; never fails the stage."""
    name = os.environ.get("DVC_STAGE")
    if not name or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    record = {"seconds": round(seconds, 2), "ended": datetime.now().astimezone().isoformat(timespec="seconds"),
              "sizes": {key: raw.get(key) for key in SIZES}}
    try:
        write_json(Path(os.environ.get("DVC_ROOT", ".")) / TIMES_FOLDER / f"{name}.json", record)
    except Exception as error:  # the stage's work is done and counts, whatever happens to this note
        print(f"the time of {name} could not be noted: {error}", file=sys.stderr)
