"""One measurement in a process of its own: ``python -m bench.arm ours.step '{"batch": 256, ...}'``.

The last line of its output is one JSON record: what the arm returned, and the process's peak memory.
"""

import json
import sys
from importlib import import_module

from lib.runtime.errors import UserError
from lib.runtime.stage import keep_memory

OURS = ("ours", "parts", "systems")  # modules whose arms begin as this project's stages do
OTHERWISE = {"accuracy.ours": True, "parts.memory_given_back": False, "parts.whole_matrix": False}


def keeps(arm: str) -> bool:
    """Whether an arm's process keeps the memory that it frees, as stages do; peers run as they come."""
    return OTHERWISE.get(arm, arm.split(".")[0] in OURS)


def main() -> None:
    arm = sys.argv[1]
    if keeps(arm):
        keep_memory()
    from bench.timing import device_memory, peak_memory  # only now, as in stages, torch is imported
    from lib.runtime.machine import read_machine

    module, function = arm.split(".")
    settings, machine = json.loads(sys.argv[2]), read_machine()
    try:
        found = getattr(import_module(f"bench.{module}"), function)(settings, machine)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # run says so
    print(json.dumps({"memory": peak_memory(), "device_memory": device_memory(), **found}))


if __name__ == "__main__":
    main()
