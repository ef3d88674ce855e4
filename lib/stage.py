"""What every stage script shares: its arguments, the check of params.yaml, and errors of one line."""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any

from lib.errors import UserError
from lib.params.check import check_params
from lib.params.pretraining import load_params


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
    try:
        raw: dict[str, Any] = load_params()
        check_params(raw)
        stage(raw, **arguments)
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
