"""Memory does not grow with what is never held: the matrix of all pairs, the activations of a whole batch.

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
PEAK = """
import torch
torch.set_num_threads(1)

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
"""
LOSS = """
from lib.methods.simclr import nt_xent

def run(count):
    rows = torch.randn(2, count // 2, 128, generator=torch.Generator().manual_seed(0))
    first, second = (torch.nn.functional.normalize(part, dim=1).requires_grad_() for part in rows)
    nt_xent(first, second, 0.5).backward()

run(512)
"""
STEP = """
from lib.core.trainer import Pretrainer
from lib.methods import build_method
from tests.examples import CPU, images, pretraining

def run(batch, part):
    params = pretraining("simclr", batch_size=batch, micro_batch_size=part)
    trainer = Pretrainer(build_method(params), images(1024), params, CPU)
    trainer.step(0, 0, trainer.order(0)[0])

run(64, 32)
"""


def growth(prepare: str, work: str) -> float:
    """MiB by which the peak rises with ``work``."""
    code = f"{PEAK}{prepare}\nbefore = peak()\n{work}\nprint(peak() - before)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    return float(done.stdout.splitlines()[-1])


def test_nt_xent_never_holds_the_matrix_of_all_pairs():
    """16,384 rows: the matrix alone would be 1,024 MiB in fp32, and its gradient as much again."""
    assert growth(LOSS, "run(16_384)") < 256


def test_a_batch_in_micro_batches_takes_no_more_memory_than_a_small_one():
    """Sixteen times the batch; taken whole it has sixteen times the activations."""
    assert growth(STEP, "run(1024, 32)") < 64
    assert growth(STEP, "run(256, 0)") > 64, "a quarter of it, taken whole, would have been noticed"
