"""The training core on a GPU. Skipped, visibly, where there is none."""

from dataclasses import replace

import pytest
import torch

from lib.core.trainer import COMPILE_MODES, Pretrainer
from lib.machine import Machine
from lib.methods import build_method
from tests.examples import CPU, images, params_file, pretraining

VARIANTS = list(params_file()["variants"])
CUDA = Machine(device="cuda", processes=1, threads=1, precision="fp32", checkpoint_minutes=10.0)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trainer(machine: Machine, variant: str = "simclr", **changes) -> Pretrainer:
    torch.manual_seed(0)
    params = pretraining(variant, **changes)
    return Pretrainer(build_method(params), images(), params, machine)


def losses(run: Pretrainer, steps: int = 4) -> list[float]:
    order = run.order(0)
    return torch.stack([run.step(0, step, order[step]) for step in range(steps)])[:, 0].tolist()


@on_a_gpu
@pytest.mark.parametrize("micro", [0, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_steps_are_those_of_a_cpu(variant, micro):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected, found = (losses(trainer(machine, variant, micro_batch_size=micro)) for machine in (CPU, CUDA))
    assert found == pytest.approx(expected, rel=1e-3)


@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_in_a_step_waits_for_the_device(variant, precision):
    run = trainer(replace(CUDA, precision=precision), variant)
    order = run.order(0)
    run.step(0, 0, order[0])  # kernels are chosen and memory is taken
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            run.step(0, step, order[step])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.guard.broken_step() is None


@on_a_gpu
@pytest.mark.parametrize("mode", list(COMPILE_MODES))
def test_compiled_steps_are_those_of_eager_ones(mode):
    expected, found = losses(trainer(CUDA)), losses(trainer(replace(CUDA, compile=mode)))
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_encoder_is_compiled_where_the_machine_says_so(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, mode: asked.append((type(module).__name__, mode)))
    names = set(trainer(CPU).method.state_dict())
    assert not asked
    run = trainer(replace(CPU, compile="on"))
    assert asked == [("SmallResNet", "default")] and set(run.method.state_dict()) == names
