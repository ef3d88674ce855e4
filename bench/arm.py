"""One measurement in a process of its own: ``python -m bench.arm ours.step '{"batch": 256, ...}'``.

The last line of its output is a JSON record: what the arm returned, and the largest memory of the process.
"""

import json
import sys
from importlib import import_module

from bench.timing import peak_memory
from lib.runtime.errors import UserError
from lib.runtime.machine import read_machine

if __name__ == "__main__":
    module, function = sys.argv[1].split(".")
    try:
        measured = getattr(import_module(f"bench.{module}"), function)(json.loads(sys.argv[2]), read_machine())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the process that started this one says so
    print(json.dumps({"memory": peak_memory(), **measured}))
