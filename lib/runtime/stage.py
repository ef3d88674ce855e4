"""What every stage script shares: its arguments, the check of params.yaml, one-line errors, and the time it took."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from lib.params.check import check_params
from lib.params.pretraining import load_params
from lib.runtime.errors import UserError
from lib.runtime.files import write_json

TIMES_FOLDER = Path(".times")  # git-ignored; one file for each stage, replaced whole
SIZES = ("dataset", "images_path", "image_size", "encoder")  # a time taken with another of these says little


def run_stage(stage: Callable[..., None], about: str, *, per_variant: bool = False) -> None:
    """Call ``stage(raw)`` or ``stage(raw, variant)`` with the checked, untyped params.yaml.

    A UserError ends the process with one line and status 1, an interrupt with one line and 130, SIGTERM with
    one line and 143.
    """
    signal.signal(signal.SIGTERM, _terminate)
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


class Terminated(BaseException):
    """SIGTERM; like KeyboardInterrupt no Exception, so that nothing takes it for an error of its own."""


def _terminate(*_: object) -> None:
    raise Terminated


def _record_time(seconds: float, raw: dict[str, Any]) -> None:
    """Keep how long DVC's stage took, for ``python -m lib.plan``, beside the checkpoints; never fails the stage."""
    name = os.environ.get("DVC_STAGE")
    if not name or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    record = {
        "seconds": round(seconds, 2),
        "ended": datetime.now().astimezone().isoformat(timespec="seconds"),
        "sizes": {key: raw.get(key) for key in SIZES},
    }
    try:
        write_json(Path(os.environ.get("DVC_ROOT", ".")) / TIMES_FOLDER / f"{name}.json", record)
    except Exception as error:  # the stage's work is done and counts, whatever happens to this note
        print(f"the time of {name} could not be noted: {error}", file=sys.stderr)
