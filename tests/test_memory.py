"""Memory does not grow with what is never held: the activations of a whole batch.

Each measurement has a process of its own: the kernel's peak of resident memory (VmHWM, Linux) never goes down.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc"),
]
STEPS = """
import torch
from tests.examples import images, trainer
torch.set_num_threads(1)

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

def step(batch, part):
    training = trainer(data=images(1024), batch_size=batch, micro_batch_size=part)
    training.step(0, 0, training.order(0)[0])

step(64, 32)
before = peak()
"""


def growth(batch: int, part: int) -> float:
    """MiB by which the peak rises with a step."""
    command = [sys.executable, "-c", f"{STEPS}step({batch}, {part})\nprint(peak() - before)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    return float(done.stdout.splitlines()[-1])


def test_a_batch_in_micro_batches_takes_no_more_memory_than_a_small_one():
    """Taken whole it has four times the activations."""
    assert growth(256, 32) < 64 < growth(256, 0)
