"""What every stage script shares: its arguments, one-line errors, and the time it took.

A stage imports what it needs within its function, so that a refusal or ``--help`` need not wait for torch. Stages are
run as modules: ``python -m stages.pretrain simclr``.
"""

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from lib.runtime.errors import UserError, print_anywhere, shown
from lib.runtime.files import write_json
from lib.runtime.machine import keep_freed_memory

NAME = r"[A-Za-z][A-Za-z0-9_]*"  # of stages and variants
# What shows numbers of all variants, written by the stages results and report; `dvc plots` draws the tables.
OVERVIEWS = ("accuracy", "confusion", "curves", "plane", "dose/dose")
CHARTS = (Path("report.html"), *(Path("plots", f"{name}.{kind}") for name in OVERVIEWS for kind in ("csv", "png")))
# Folders of data/ that hold outputs.
OUTPUTS = ("variants", "encoders", "scores", "memory", "landmarks", "embeddings", "tsne", "filters")


def run_stage(main: Callable[..., None], about: str, per_variant: bool = False) -> None:
    """Call ``main()``, or ``main(variant)`` with the variant that the command line names.

    A UserError ends the process with one line and status 1, an interrupt with one line and 130, a pipe that no one
    reads any more with one line and 141, SIGTERM with one line and 143.
    """
    print_anywhere()
    signal.signal(signal.SIGTERM, _terminate)
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=about)
    if per_variant:
        parser.add_argument("variant", help="a key of variants in params.yaml")
    arguments = vars(parser.parse_args())
    started = time.monotonic()
    try:
        if per_variant and not re.fullmatch(NAME, arguments["variant"]):  # which becomes a part of paths
            raise UserError(f"{shown(arguments['variant'])} is no name of a variant; give one of those in params.yaml")
        _check_folders()
        main(**arguments)
        _note_time(time.monotonic() - started)
    except UserError as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, Terminated) as stop:
        word, status = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
        print(f"{word}; give the same command again (a training goes on from its last checkpoint)", file=sys.stderr)
        sys.exit(status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush at the end
        print("stopped: what read the output has ended; give the same command again", file=sys.stderr)
        sys.exit(141)


def _check_folders() -> None:
    """Refuse a link in the place of a folder of outputs, of which DVC says only after the stage that it keeps none."""
    data, *others = map(Path, ("data", "metrics", "plots"))
    for path in (
        data,
        *(data / name for name in OUTPUTS),
        *others,
        *(path for each in others for path in each.glob("*")),
    ):
        if path.is_symlink() and path.is_dir():
            disk = "dvc cache dir --local PLACE; dvc config --local cache.type symlink"
            how = f"make it a folder (outputs on another disk: {disk})"
            raise UserError(f"{path} is a link, behind which DVC keeps no outputs; {how}")


class Terminated(BaseException):
    """SIGTERM; like KeyboardInterrupt no Exception, so that nothing takes it for an error of its own."""


def _terminate(*_: object) -> None:
    raise Terminated


def remove_charts() -> None:
    """For a stage after which numbers of a variant are new: charts and report of all variants hold its old ones.

    Where no ``results`` follows, as in ``dvc exp run linear@joint``, they would be drawn and read as if they were new.
    Where one does, it draws them again, in seconds.
    """
    for path in CHARTS:
        path.unlink(missing_ok=True)


def times_folder() -> Path:
    """Where clock times go, git-ignored: an output that held them would never be the same twice."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".times"


def _note_time(seconds: float) -> None:
    """Keep how long a stage of DVC's took, for ``python -m lib plan``; never fails the stage."""
    # From a subfolder DVC names the file too, ../dvc.yaml:download. Text from the environment is never a path.
    name = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if not re.fullmatch(f"{NAME}(@{NAME})?", name) or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    note = {"seconds": round(seconds, 2), "ended": datetime.now().astimezone().isoformat(timespec="seconds")}
    try:
        write_json(times_folder() / f"{name}.json", note)
    except Exception as error:  # the stage's work is done and counts, whatever happens to this note
        print(f"the time of {name} could not be noted: {error}", file=sys.stderr)
