"""One measurement in a process of its own: ``python -m bench.arm ours.step '{"batch": 256, ...}'``.

The last line of its output is one JSON record: what the arm returned, and the process's peak memory.
"""

import json
import sys
from importlib import import_module

from bench.timing import device_memory, peak_memory
from lib.errors import UserError
from lib.machine import read_machine
from lib.stage import keep_memory

OURS = ("ours", "parts", "systems")  # modules whose arms begin as this project's stages do
OTHERWISE = {"accuracy.ours": True, "parts.memory_given_back": False}


def main() -> None:
    arm = sys.argv[1]
    module, function = arm.split(".")
    settings, machine = json.loads(sys.argv[2]), read_machine()
    if OTHERWISE.get(arm, module in OURS):
        keep_memory()
    try:
        found = getattr(import_module(f"bench.{module}"), function)(settings, machine)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # run says so
    print(json.dumps({"memory": peak_memory(), "device_memory": device_memory(), **found}))


if __name__ == "__main__":
    main()
