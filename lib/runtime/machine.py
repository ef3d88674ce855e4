"""Settings of the machine: where and how fast to compute. They never belong to an experiment.

Read from the environment (ENGRAM_DEVICE and so on, by the names of `Machine`), then from a git-ignored machine.yaml in
the working folder, then chosen from what the machine has.
"""

import ctypes
import os
import shlex
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lib.params.spec import load_yaml
from lib.runtime.errors import UserError

MACHINE_FILE = Path("machine.yaml")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt, as glibc's malloc.h numbers them


@dataclass(frozen=True)
class Machine:
    """``precision`` is bf16 (autocast; parameters and losses stay fp32) or fp32.

    ``processes`` of all machines share one global batch; ``threads`` are per process. ``compile`` is off, on
    (torch.compile of the encoder) or graphs (CUDA graphs, for one process and no micro-batches); "auto" is graphs where
    they can be, else off. ``torchrun`` is what torchrun has to know about several machines (docs/scaling.md).
    ``nodes`` is no setting: the number of machines that torchrun has started processes on.
    """

    device: str
    processes: int
    threads: int
    precision: str
    checkpoint_minutes: float
    compile: str = "off"
    torchrun: str = ""
    nodes: int = 1

    def __str__(self) -> str:
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        compiled = {"off": "", "on": ", compiled", "graphs": ", CUDA graphs"}[self.compile]
        return f"{self.device} x{self.processes}{nodes}, {self.threads} threads, {self.precision}{compiled}"


def read_machine(alone: bool = False) -> Machine:
    """The resolved settings; also sets torch's thread count, and strict fp32 where it is chosen, for this process.
    ``alone``: for a stage that is one process, whatever `processes` says, and has all threads. A UserError names an
    unknown key, or a value that this machine cannot honor.
    """
    import torch

    root = Path(os.environ.get("DVC_ROOT", "."))  # a temporary copy of the project has no ignored files
    path = MACHINE_FILE if MACHINE_FILE.exists() else root / MACHINE_FILE
    written = load_yaml(path, may_be_empty=True) if path.exists() else {}
    names = [field.name for field in fields(Machine) if field.name != "nodes"]
    for key in written:
        if key not in names:
            raise UserError(f"machine.yaml: unknown key {key}; allowed: {', '.join(names)}")
    settings = {name: os.environ.get(f"ENGRAM_{name.upper()}", written.get(name, "auto")) for name in names}
    device = _device(str(settings["device"]))
    processes, torchrun = _processes(settings["processes"]), _torchrun(settings["torchrun"])
    several = processes > 1 or bool(torchrun) or launched()
    # on CUDA every process needs a device of its own
    if several and device != "cpu" and (device != "cuda" or processes > torch.cuda.device_count()):
        allowed = f"device 'cuda' and at most its {torch.cuda.device_count()} device(s)"
        raise UserError(f"machine setting processes is {processes} with device {device!r}; allowed: {allowed}")
    processes = 1 if alone else processes
    # how many this process may use, not how many the machine has
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = Machine(
        device=device,
        processes=processes,
        threads=_number("threads", settings["threads"], max(1, processors // processes)),
        precision=_precision(str(settings["precision"]), device),
        checkpoint_minutes=_number("checkpoint_minutes", settings["checkpoint_minutes"], 10.0, float, 0),
        compile=_compile(settings["compile"], device, several),
        torchrun=torchrun,
        nodes=int(os.environ["GROUP_WORLD_SIZE"]) if launched() else 1,
    )
    torch.set_num_threads(machine.threads)
    if machine.precision == "fp32":  # and not tf32, in which cuDNN computes convolutions otherwise
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return machine


def launched() -> bool:
    """Whether torchrun has started this process, one of several that belong together."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def keep_freed_memory() -> None:
    """Have this process keep what it frees until it ends, where the C library is glibc; elsewhere nothing changes."""
    # glibc gives large blocks back to the system, which hands each out again page by page, zeroed. A training step
    # frees and takes the same hundreds of megabytes each time (docs/status.md has what that costs).
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_MAX, 0)  # large blocks from the heap too, not each from the system
    mallopt(M_TRIM_THRESHOLD, -1)  # and the heap never shrinks


@contextmanager
def autocast(machine: Machine):
    """Autocast to the machine's precision."""
    import torch

    kind = torch.device(machine.device).type
    # On a CPU without the cache: the gradients of a weight that two views use are then added up in fp32, not in bf16.
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=machine.precision == "bf16", cache_enabled=kind != "cpu"):
        yield


def _not_allowed(name: str, value: object, allowed: str) -> UserError:
    return UserError(f"machine setting {name} is {value!r}; allowed: {allowed}")


def _number(name: str, value: object, usual: float, kind: type = int, low: int = 1) -> Any:
    try:
        number = usual if value == "auto" else kind(str(value))
    except ValueError:
        number = -1
    if not number >= low:
        word = "a whole number" if kind is int else "a number"
        raise _not_allowed(name, value, f"auto or {word} of at least {low}")
    return number


def _device(value: str) -> str:
    import torch

    if value == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    usable = ["cpu"]
    if torch.cuda.is_available():
        usable += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if value not in usable:
        raise UserError(f"machine setting device is {value!r}; usable here: auto, {', '.join(usable)}")
    return value


def _processes(value: object) -> int:
    """What the setting says, or what torchrun has started on this machine, which must not differ."""
    count = _number("processes", value, 1)
    if not launched():
        return count
    started = int(os.environ["LOCAL_WORLD_SIZE"])
    if value != "auto" and count != started:
        found = f"{value!r} while torchrun has started {started} on this machine"
        raise UserError(f"machine setting processes is {found}; allowed: auto or {started}")
    return started


def _torchrun(value: object) -> str:
    text = "" if value == "auto" else str(value or "")
    try:
        shlex.split(text)
    except ValueError as error:
        example = "--nnodes 2 --node-rank 0 --master-addr node0 --master-port 29500"
        allowed = f"arguments of torchrun, for example {example}"
        raise UserError(f"machine setting torchrun is {text!r} ({error}); allowed: {allowed}") from None
    return text


def _compile(value: object, device: str, several: bool) -> str:
    value = {"True": "on", "False": "off"}.get(str(value), str(value))  # as YAML reads on and off
    graphs = device != "cpu" and not several
    if value == "auto":
        return "graphs" if graphs else "off"
    if value not in ("off", "on", "graphs"):
        raise _not_allowed("compile", value, "auto, off, on, graphs")
    if value == "graphs" and not graphs:
        reason = f"device {device!r}" if device == "cpu" else "several processes"
        need = "CUDA graphs need a CUDA device and one process: allowed: auto, off, on"
        raise UserError(f"machine setting compile is 'graphs' with {reason}; {need}")
    return value


def _precision(value: str, device: str) -> str:
    import torch

    if value not in ("auto", "fp32", "bf16"):
        raise _not_allowed("precision", value, "auto, fp32, bf16")
    if value != "auto":
        return value
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
