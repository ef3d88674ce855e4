"""What CUDA graphs hold of a step and when they must be captured anew, with graphs that a CPU emulates.

That real graphs compute the same is tested where there is a GPU (tests/test_cuda.py).
"""

from dataclasses import replace

import pytest
import torch

from lib.core.cuda_graphs import MOST, CudaGraphs, Unrecordable
from lib.core.optimizers import laid_out
from lib.core.trainer import Pretrainer
from tests.examples import CPU, EACH, images
from tests.examples import trainer as trainer_of
from tests.fake_graphs import FakeDevice


@pytest.fixture
def device(monkeypatch) -> FakeDevice:
    return FakeDevice().install(monkeypatch)


def trainer(compile: str = "graphs", variant: str = "simclr", **changes) -> Pretrainer:
    return trainer_of(variant, replace(CPU, compile=compile), data=images(count=128), epochs=1, **changes)


def pair(**changes) -> tuple[Pretrainer, Pretrainer]:
    return trainer("off", **changes), trainer(**changes)


def steps(run: Pretrainer, *numbers: int) -> list[float]:
    order = run.order(0)
    return [run.step(0, number, order[number])[0].item() for number in numbers]


@pytest.mark.parametrize("variant", EACH)
def test_graphed_steps_are_those_of_eager_ones(variant, device):
    """Past the half of the steps, where a method may turn to other layers, and with what it remembers."""
    plain, graphed = pair(variant=variant)
    count = min(6, plain.steps_per_epoch)
    assert steps(graphed, *range(count)) == pytest.approx(steps(plain, *range(count)), rel=1e-5)
    assert count > 4 and graphed.passes.graphs.of and device.captures in (2, 4)
    states = zip(plain.method.state_dict().items(), graphed.method.state_dict().values(), strict=True)
    for (name, expected), found in states:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_a_training_goes_on_from_a_checkpoint(device):
    whole, first, second = trainer(), trainer(), trainer()
    expected = steps(whole, 0, 1, 2, 3)
    found = steps(first, 0, 1)
    steps(second, 0)  # captured before it takes over what another left
    second.restore(first.state())
    assert found + steps(second, 2, 3) == pytest.approx(expected, rel=1e-5)


def test_gradients_add_up(device):
    """Also where the first is in the storage that the second is computed into."""
    found = []
    for run in pair():
        for number in (0, 1):
            run.forward_backward(0, number, run.order(0)[number])
        found.append([weight.grad.clone() for weight in run.method.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def knob(run: Pretrainer, change) -> None:
    """A pass that scales its views by ``knob``, which ``change`` moves after each step."""
    method = run.method
    embed, after = method.embed, method.after_step
    method.register_buffer("knob", torch.ones(()))
    method.numbers, method.turns = [1.0], (1.0,)

    def after_step(step: int, count: int) -> None:
        after(step, count)
        change(method)

    method.embed = lambda views: embed([view * method.knob * method.numbers[0] * method.turns[0] for view in views])
    method.after_step = after_step


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda method: method.knob.mul_(1.5), False),
        (lambda method: setattr(method, "knob", method.knob * 1.5), True),
        (lambda method: method.numbers.__setitem__(0, method.numbers[0] * 1.5), True),
        (lambda method: setattr(method, "turns", (method.turns[0] * 1.5,)), True),
        (lambda method: [norm.eval() for norm in method.modules() if isinstance(norm, torch.nn.BatchNorm2d)], True),
    ],
    ids=["buffer in place", "buffer anew", "list", "tuple", "BatchNorm"],
)
def test_a_pass_that_changes_is_captured_again(change, again, device):
    plain, graphed = pair()
    for run in (plain, graphed):
        knob(run, change)
    assert steps(graphed, 0, 1, 2) == pytest.approx(steps(plain, 0, 1, 2), rel=1e-5)
    assert (graphed.passes.graphs.count > 1) == again


def test_one_that_changes_in_every_step_is_left_alone(device, capsys):
    plain, graphed = pair(batch_size=8)
    for run in (plain, graphed):
        knob(run, lambda method: setattr(method, "turns", (method.turns[0] * 1.01,)))
    numbers = range(MOST + 3)
    assert steps(graphed, *numbers) == pytest.approx(steps(plain, *numbers), rel=1e-4)
    assert graphed.passes.graphs is None and graphed.setting == plain.setting
    assert f"simclr: its forward pass has changed {MOST} times; without CUDA graphs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (lambda device: torch.rand(()), "draws random numbers"),
        (lambda device: device.synchronize(), "makes the host wait for the device"),
    ],
)
def test_one_that_draws_or_waits_is_started_kernel_by_kernel(disturb, words, device, capsys, monkeypatch):
    plain, graphed = pair()
    kind, embed = type(graphed.method), type(graphed.method).embed
    monkeypatch.setattr(kind, "embed", lambda method, views: (disturb(device), embed(method, views))[1])
    assert steps(graphed, 0, 1, 2) == pytest.approx(steps(plain, 0, 1, 2), rel=1e-5)
    assert graphed.passes.graphs is None and device.captures == 0 and device.mode == 0
    assert capsys.readouterr().out.count(words) == 1


def test_what_is_refused_changes_nothing(device):
    method = trainer().method
    before = {name: value.clone() for name, value in method.state_dict().items()}
    graphs, inputs = CudaGraphs(), [torch.arange(4), torch.rand(4, 3, 16, 16)]
    with pytest.raises(Unrecordable):
        graphs.forward(method, lambda inputs: {"z": method.latents(inputs[1] + torch.rand(()))["h"]}, inputs)
    assert not graphs.of and all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_loss_that_turns_to_other_embeddings_is_computed_without_graphs(device, capsys):
    """Its gradient is found to be lost after the backward pass: statistics must not count the batch twice."""
    plain, graphed = pair()
    for run in (plain, graphed):
        loss = run.method.loss

        def one_side_first(embeddings, run=run, loss=loss):
            if run.early:
                embeddings = {**embeddings, "z_b": embeddings["z_b"].detach()}
            return loss(embeddings)

        run.method.loss = one_side_first
        run.early = True
    found, expected = steps(graphed, 0, 1), steps(plain, 0, 1)
    plain.early = graphed.early = False
    assert found + steps(graphed, 2, 3) == pytest.approx(expected + steps(plain, 2, 3), rel=1e-5)
    assert graphed.passes.graphs is None and "met a loss that uses z_a, z_b, and not" in capsys.readouterr().out
    for expected, found in zip(plain.method.buffers(), graphed.method.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_gradients_lie_as_their_weights_do():
    weight = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(4, 3, 5, 5)
    laid = laid_out(gradient, weight)
    assert laid.stride() == weight.stride() and torch.equal(laid, gradient) and laid_out(laid, weight) is laid
