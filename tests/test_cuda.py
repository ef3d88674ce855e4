"""The training core on a GPU. Skipped, visibly, where there is none."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lib.core.trainer import Pretrainer
from lib.runtime.machine import Machine
from tests.examples import CPU, VARIANTS, images
from tests.examples import trainer as trainer_of

CUDA = Machine(device="cuda", processes=1, threads=1, precision="fp32", checkpoint_minutes=10.0)
GRAPHS = replace(CUDA, compile="graphs")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trainer(machine: Machine, variant: str = "simclr", **changes) -> Pretrainer:
    return trainer_of(variant, machine, data=images(count=128), **changes)


def losses(run: Pretrainer, steps: int = 4) -> list[float]:
    order = run.order(0)
    return torch.stack([run.step(0, step, order[step]) for step in range(steps)])[:, 0].tolist()


def first_gradient(run: Pretrainer) -> tuple[float, dict[str, torch.Tensor]]:
    """The first step's loss, and its gradient on the CPU."""
    loss = run.forward_backward(0, 0, run.order(0)[0])[0].item()
    return loss, {name: weight.grad.cpu() for name, weight in run.method.named_parameters() if weight.grad is not None}


@pytest.fixture
def drawn_on_the_cpu(monkeypatch):
    """Random numbers of a loss come from the CPU's stream on a GPU too: the two streams differ."""

    def drawn(draw: Callable) -> Callable:
        return lambda *args, device="cpu", **kwargs: draw(*args, **kwargs).to(device)

    monkeypatch.setattr(torch, "rand_like", lambda like: torch.rand(like.shape, device=like.device))
    for name in ("rand", "randint"):
        monkeypatch.setattr(torch, name, drawn(getattr(torch, name)))


@on_a_gpu
@pytest.mark.parametrize(("machine", "micro"), [(CUDA, 0), (GRAPHS, 0), (CUDA, 4)], ids=["off", "graphs", "micro"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_step_is_that_of_a_cpu(variant, machine, micro, drawn_on_the_cpu):
    """Each parameter's gradient, but for what rounding leaves of those that cancel to nothing."""
    micro = micro and (8 if variant == "moco_groups" else micro)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected, gradients = first_gradient(trainer(CPU, variant, micro_batch_size=micro))
    found, own = first_gradient(trainer(machine, variant, micro_batch_size=micro))
    assert found == pytest.approx(expected, rel=1e-4) and own.keys() == gradients.keys()
    whole = torch.stack([gradient.norm() for gradient in gradients.values()]).max()
    for name, gradient in gradients.items():
        assert (own[name] - gradient).norm() <= 0.03 * gradient.norm() + 0.003 * whole, name


@on_a_gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_graphed_steps_are_those_of_eager_ones(variant):
    """Over half of the steps, where a method may turn to other layers, and with what it remembers between them."""
    plain, graphed = (trainer(machine, variant, epochs=1) for machine in (CUDA, GRAPHS))
    expected = losses(plain, 6)
    assert losses(graphed, 6) == pytest.approx(expected, rel=5e-3) and graphed.passes.graphs.of
    for (name, buffer), other in zip(plain.method.named_buffers(), graphed.method.buffers(), strict=True):
        torch.testing.assert_close(other.float(), buffer.float(), rtol=0.02, atol=0.02, msg=name)


@on_a_gpu
@pytest.mark.parametrize("compile", ["off", "graphs"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_never_makes_the_host_wait(variant, precision, compile):
    run = trainer(replace(CUDA, precision=precision, compile=compile), variant)
    order = run.order(0)
    run.step(0, 0, order[0])  # kernels are chosen, memory is taken, graphs are captured
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            run.step(0, step, order[step])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.guard.broken_step() is None


@on_a_gpu
@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (lambda views: views[0] + 0 * torch.randn_like(views[0]), "draws random numbers"),
        (lambda views: views[0] + 0 * views[0].mean().item(), "makes the host wait for the device"),
    ],
)
def test_a_forward_pass_that_no_graph_holds_is_started_kernel_by_kernel(disturb, words, capsys, monkeypatch):
    run, plain = trainer(GRAPHS), trainer(CUDA)
    kind, embed = type(run.method), type(run.method).embed
    monkeypatch.setattr(kind, "embed", lambda method, views: embed(method, [disturb(views), views[1]]))
    assert losses(run) == pytest.approx(losses(plain), rel=5e-3)
    assert run.passes.graphs is None and words in capsys.readouterr().out


@on_a_gpu
def test_compiled_steps_are_those_of_eager_ones():
    expected, found = losses(trainer(CUDA)), losses(trainer(replace(CUDA, compile="on")))
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_encoder_is_compiled_where_the_machine_says_so(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: asked.append(type(module).__name__))
    names = set(trainer(CPU).method.state_dict())
    assert not asked
    run = trainer(replace(CPU, compile="on"))
    assert asked == ["SmallResNet"] and set(run.method.state_dict()) == names
