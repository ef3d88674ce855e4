"""What the numbers were measured on and with, as lines of the report."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from lib.runtime.machine import Machine

FLAGS = {"avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "lightly", "kornia")
QUIET = 0.5  # load per processor
CODE = ("lib", "bench", "presets", "requirements.txt", "requirements-bench.txt")


def facts(machine: Machine) -> dict[str, Any]:
    """``load`` is the number of running processes over the last minute, before anything was started."""
    installed = {package.name.lower(): package.version for package in distributions()}
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if torch.device(machine.device).type == "cuda":
        device = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
        cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        flags = sorted(FLAGS.intersection(cpu.get("flags", "").split()))
        device = f"{cpu.get('model name', platform.machine())}, {processors} processors, {', '.join(flags)}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("log", "-1", "--format=%h")
        + (" and changes" if _git("status", "--porcelain", "--", *CODE) else ""),
        "machine": f"{device}; ours: {machine}",
        "load": round(load, 2),
        "quiet": load <= QUIET * processors,
        "versions": ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()
