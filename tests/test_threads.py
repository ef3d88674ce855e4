"""Two threads of torch's own train the same every time and never hang; no two Python threads run torch at all.

In torch 2.14 one Python thread can wait for the interpreter's lock with a parameter's autograd lock in hand, while
another waits for that with the interpreter's: both wait for ever. tests/test_layers.py forbids such threads.
"""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.examples import VARIANTS, trainer
from tests.machines import project, start

SLOW = pytest.mark.slow
PATIENCE = 180  # seconds; a training of this size takes a tenth


class InOneOrder(TorchDispatchMode):
    """Refuses to accumulate at indices, which threads of a CPU do in the order in which they come by."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = operation.overloadpacket.__name__
        place = {"index_put": 3, "index_put_": 3, "_index_put_impl_": 3, "put": 3, "put_": 3}.get(name)
        if place and len(args) > place and args[place] and args[0].is_floating_point():
            raise AssertionError(f"{operation} accumulates {list(args[2].shape)}: in no order that is always the same")
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(variant: str, steps: int = 2) -> dict[str, torch.Tensor]:
    run = trainer(variant, epochs=1)
    order = run.order(0)
    with InOneOrder():
        for number in range(steps):
            run.step(0, number, order[number])
            run.method.after_step(run.steps // 2 - 1, run.steps)  # a method may turn to other layers there
    return run.method.state_dict()


@pytest.mark.parametrize("variant", [pytest.param(name, marks=SLOW if name != "simclr" else ()) for name in VARIANTS])
def test_a_training_by_two_threads_is_the_same_twice(variant, two_threads):
    first, second = trained(variant), trained(variant)
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(20))
def test_trainings_by_two_threads_end(turn, tmp_path):
    """The stage, with the demo's variants in turn, in both precisions; a hang is a failure and no endless test run."""
    variant, precision = ("joint", "simclr", "dual", "supervised")[turn % 4], ("fp32", "bf16")[turn // 4 % 2]
    folder = project(tmp_path / "project", variant, count=256, batch_size=64, epochs=3)
    command = [sys.executable, "-m", "stages.pretrain", variant]
    settings = {"ENGRAM_THREADS": "2", "OMP_NUM_THREADS": "2", "ENGRAM_PRECISION": precision}
    process = start(command, folder, **settings)
    try:
        said = process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"{variant} in {precision} does not end: {process.communicate()[0]}")
    assert process.returncode == 0 and "epoch 3 of 3" in said, said
