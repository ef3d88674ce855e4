"""What the numbers were measured on and with."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lib.runtime.errors import UserError
from lib.runtime.machine import Machine

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn", "lightly", "kornia")
QUIET = 0.5  # load per processor
CODE = ("lib", "bench", "presets", "requirements.txt", "requirements-bench.txt")


def describe_machine(machine: Machine, processors: list[int]) -> dict[str, Any]:
    """``load`` is the number of running processes over the last minute, before anything was started."""
    cpu = _cpu()
    return {
        "processor": cpu.get("model name", platform.processor() or platform.machine()),
        "family": f"family {cpu.get('cpu family', '?')}, model {cpu.get('model', '?')}",
        "flags": [flag for flag in FLAGS if flag in cpu.get("flags", "").split()],
        "processors": os.cpu_count(),
        "used": len(processors),
        "threads": machine.threads,
        "precision": machine.precision,
        "compile": machine.compile,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "quiet": os.getloadavg()[0] <= QUIET * (os.cpu_count() or 1),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu() if machine.device == "cuda" else None,
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that take part.

    Raises:
        UserError: one is not installed.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise UserError(f"{name} is not installed; run make bench, which installs requirements-bench.txt") from None
    return found


def commit() -> str:
    """The commit that is checked out, and whether the code that is measured differs from it."""
    try:
        name = _git("log", "-1", "--format=%h of %cs")
        changed = _git("status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no git repository"
    return f"{name}, with changes that are not committed" if changed else name


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def _gpu() -> str:
    """Its name and memory."""
    about = torch.cuda.get_device_properties(0)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _cpu() -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo."""
    text = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
