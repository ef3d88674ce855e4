"""The slow copy that BYOL and MoCo share (docs/methods.md, 7 and 8): how it moves, and what it must not do."""

import io
from dataclasses import replace

import pytest
import torch
from lib.methods.parts.momentum import MomentumMethod, update_ema
from torch import nn

from lib.core.health import COLLAPSED
from lib.core.trainer import Pretrainer
from lib.methods import build_method
from lib.methods.export import load_method, save_method
from lib.params.pretraining import Pretraining
from tests.examples import CPU, images, params_file, pretraining

VARIANTS = [
    name
    for name, block in params_file()["variants"].items()
    if "part" in block["watch"] and block["watch"]["part"] == MomentumMethod.part
]
PAIRS = (("momentum_encoder", "encoder"), ("momentum_projector", "projector"))


def params_of(variant: str, **options) -> Pretraining:
    params = pretraining(variant)
    return replace(params, options={**params.options, **options})


def run_of(variant: str, seed: int = 0, **options) -> Pretrainer:
    params = params_of(variant, **options)
    torch.manual_seed(seed)
    return Pretrainer(build_method(params), images(), params, CPU)


def steps(run: Pretrainer, numbers: range) -> None:
    for number in numbers:
        epoch, step = divmod(number, run.steps_per_epoch)
        run.step(epoch, step, run.order(epoch)[step])


def parameters(module: nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def equal(first, second) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def two_layers(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()


def test_there_are_variants():
    assert {"byol", "moco", "moco_v1"} <= set(VARIANTS)


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_towards_weights_at_rest_it_moves_by_a_power_of_the_momentum(momentum):
    slow, fast = two_layers(0), two_layers(1)
    begin, goal = parameters(slow), parameters(fast)
    for _ in range(50):
        update_ema(slow, fast, momentum)
    expected = [there + momentum**50 * (here - there) for here, there in zip(begin, goal)]
    torch.testing.assert_close(parameters(slow), expected, atol=1e-12, rtol=0)
    assert equal(parameters(fast), goal)


def test_with_momentum_one_it_rests_and_with_zero_it_copies():
    slow, fast = two_layers(0), two_layers(1)
    begin = parameters(slow)
    update_ema(slow, fast, 1.0)
    assert equal(parameters(slow), begin)
    update_ema(slow, fast, 0.0)
    assert equal(parameters(slow), parameters(fast))


def test_statistics_are_not_averaged():
    slow, fast = two_layers(0), two_layers(1)
    fast(torch.randn(8, 3, dtype=torch.float64))
    update_ema(slow, fast, 0.5)
    assert slow[1].num_batches_tracked == 0 and torch.equal(slow[1].running_mean, torch.zeros(4).double())


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_starts_equal_in_storage_of_its_own(variant):
    method = run_of(variant).method
    for slow, fast in PAIRS:
        assert equal(parameters(method.get_submodule(slow)), parameters(method.get_submodule(fast)))
    places = [weight.data_ptr() for weight in method.parameters()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("variant", VARIANTS)
def test_after_a_step_it_is_a_mean_of_what_it_was_and_what_the_optimiser_left(variant):
    run = run_of(variant, momentum=0.75)
    before = [parameters(run.method.get_submodule(slow)) for slow, _ in PAIRS]
    steps(run, range(1))
    for (slow, fast), begin in zip(PAIRS, before):
        learnt = parameters(run.method.get_submodule(fast))
        assert not equal(begin, learnt)
        expected = [0.75 * old + 0.25 * new for old, new in zip(begin, learnt)]
        torch.testing.assert_close(parameters(run.method.get_submodule(slow)), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_has_no_gradient_and_no_place_in_the_optimiser(variant):
    run = run_of(variant)
    run.gradient(0, 0, run.order(0)[0])
    copied = {id(weight) for slow, _ in PAIRS for weight in run.method.get_submodule(slow).parameters()}
    learning = {id(weight) for group in run.optimizer.param_groups for weight in group["params"]}
    assert copied and not copied & learning
    assert len(copied) + len(learning) == len(list(run.method.parameters()))
    for weight in run.method.parameters():
        assert (weight.grad is None) == (id(weight) in copied)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_training_it_normalises_a_batch_by_that_batch(variant):
    """At the start both sides are equal, so that in train mode they give the same of the same images."""
    method = run_of(variant).method
    picture = 3 + torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    first = method.momentum_projection(picture)
    assert torch.equal(first, method.projector(method.latents(picture)["h"])) and not first.requires_grad
    counted = [
        norm.num_batches_tracked.item()
        for slow, _ in PAIRS
        for norm in method.get_submodule(slow).modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
    ]
    assert counted and set(counted) == {1}
    method.momentum_encoder.eval()
    assert (method.momentum_projection(picture) - first).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_sees_the_learning_side(variant):
    run = run_of(variant)
    steps(run, range(2))
    method = run.method.eval()
    picture = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = {**method.latents(picture), **method.project(method.latents(picture))}
    with torch.no_grad():
        for slow, _ in PAIRS:
            for weight in method.get_submodule(slow).parameters():
                weight.zero_()
    after = {**method.latents(picture), **method.project(method.latents(picture))}
    assert list(before) == ["h", "z"] and all(torch.equal(rows, after[name]) for name, rows in before.items())


@pytest.fixture(scope="module")
def uninterrupted():
    """The state after all steps, by variant."""
    done = {}

    def of(variant: str, **options) -> dict[str, torch.Tensor]:
        if variant not in done:
            run = run_of(variant, **options)
            steps(run, range(6))
            done[variant] = run.method.state_dict()
        return done[variant]

    return of


@pytest.mark.parametrize(("variant", "stop"), [("byol", 1), ("byol", 5), ("moco", 1), ("moco", 5), ("moco_v1", 3)])
def test_a_resume_after_any_step_gives_the_same_bits(variant, stop, uninterrupted):
    options = {"queue": 64, "norm_rows": 4, "shuffle": True} if "queue" in pretraining(variant).options else {}
    first, second = run_of(variant, **options), run_of(variant, seed=1, **options)
    steps(first, range(stop))
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.restore(torch.load(file, weights_only=True))
    steps(second, range(stop, 6))
    found, expected = second.method.state_dict(), uninterrupted(variant, **options)
    assert found.keys() == expected.keys() and equal(found.values(), expected.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_method_file_holds_everything_that_a_step_changed(variant, tmp_path):
    run = run_of(variant)
    steps(run, range(3))
    save_method(tmp_path / "m.safetensors", run.method, run.params, {"checksum": "c"})
    loaded, _ = load_method(tmp_path / "m.safetensors")
    assert equal(loaded.state_dict().values(), run.method.state_dict().values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_collapse_shows_in_the_spread_and_health_does_not(variant):
    for broken in (False, True):
        run = run_of(variant)
        if broken:
            last = [module for module in run.method.momentum_projector.modules() if isinstance(module, nn.Linear)][-1]
            with torch.no_grad():
                last.weight.zero_()
                last.bias.fill_(1.0)
        smallest = run.gradient(0, 0, run.order(0)[0])[-1].item()
        assert (smallest < COLLAPSED) == broken
        low = {name for name, value in run.spreads.items() if value.item() < COLLAPSED}
        assert low == ({name for name in run.spreads if name[0] in "tk"} if broken else set())
