"""A batch taken in micro-batches: loss, gradient and statistics against the batch taken whole."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.core.trainer import Pretrainer, check_batch, micro_batches
from lib.methods import build_method
from lib.runtime.errors import UserError
from lib.runtime.seeds import generator
from tests.examples import CPU, FORMS, images, params_file, pretraining
from tests.two_processes import without_batch_norm

VARIANTS = [*params_file()["variants"], *FORMS]
SIZES = {variant: (8,) if variant in FORMS else (4, 2, 8) for variant in VARIANTS}  # MoCo's groups are of 4


def run_of(variant: str, micro: int, prepare=None, **changes) -> Pretrainer:
    params = pretraining(variant, micro_batch_size=micro, **changes)
    torch.manual_seed(0)
    method = build_method(params)
    if prepare:
        prepare(method)
    return Pretrainer(method, images(), params, CPU)


def gradient_of(run: Pretrainer) -> tuple[torch.Tensor, list[torch.Tensor]]:
    values = run.gradient(0, 0, run.order(0)[0])
    return values, slopes(run)


def slopes(run: Pretrainer) -> list[torch.Tensor]:
    return [weight.grad for weight in run.method.parameters() if weight.requires_grad]


@pytest.mark.parametrize(("variant", "micro"), [(variant, size) for variant in VARIANTS for size in SIZES[variant]])
def test_loss_and_gradient_are_those_of_the_whole_batch(variant, micro):
    """Without BatchNorm, which normalizes within a micro-batch, the two are the same function."""
    whole, part = (gradient_of(run_of(variant, size, without_batch_norm)) for size in (0, micro))
    torch.testing.assert_close(part, whole, atol=1e-5 * max(1.0, whole[0][0].item()), rtol=1e-5)
    learning = [slope for slope in whole[1] if slope is not None]
    assert all(slope.abs().max() > 0 for slope in learning)
    in_turn = pretraining(variant).options.get("layers") == 2  # one layer first, then the other
    assert len(learning) == len(whole[1]) or in_turn


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_the_statistics_of_evaluation_they_are_equal_too(variant):
    runs = [run_of(variant, size) for size in (0, SIZES[variant][0])]
    for run in runs:
        run.method.eval()
    whole, part = map(gradient_of, runs)
    torch.testing.assert_close(part, whole, atol=1e-5 * max(1.0, whole[0][0].item()), rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_the_one_of_batch_norm_within_micro_batches(variant):
    """The same loss, written as one graph over all micro-batches at once."""
    size = SIZES[variant][0]
    run = run_of(variant, size)
    values, gradients = gradient_of(run)
    plain = run_of(variant, size)
    order, draws = plain.order(0)[0], plain.draws(0, 0)
    pieces = [plain.method.embed(plain.views(draws, order, rows)) for rows in micro_batches(plain.rows, size)]
    whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    torch.manual_seed(generator(plain.params.seed, "loss", 0, 0).initial_seed())
    total, _ = plain.method.loss({**whole, **{name: values[order] for name, values in plain.given.items()}})
    total.backward()
    assert values[0].item() == pytest.approx(total.item(), abs=1e-5)
    torch.testing.assert_close(gradients, slopes(plain), atol=1e-5, rtol=1e-4)


def test_groups_within_micro_batches_are_those_of_the_whole_batch():
    """With BatchNorm in groups, all is equal as long as no key changes its group.

    Keys are dealt out to the groups of their micro-batch, and so meet others than in the whole batch.
    """

    def loss_and_gradient(micro: int, shuffle: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        params = pretraining("moco_groups", micro_batch_size=micro)
        params = replace(params, options={**params.options, "shuffle": shuffle})
        torch.manual_seed(0)
        return gradient_of(Pretrainer(build_method(params), images(), params, CPU))

    whole, part = (loss_and_gradient(micro, shuffle=False) for micro in (0, 8))
    torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-4)
    whole, part = (loss_and_gradient(micro, shuffle=True)[0][0] for micro in (0, 8))
    assert (part - whole).abs() > 1e-3


def test_each_micro_batch_counts_once_into_the_running_statistics():
    run = run_of("simclr", 4)
    norms = [child for child in run.method.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    gradient_of(run)
    views_of_micro_batches = run.method.views * run.params.batch_size // 4
    assert norms and all(norm.num_batches_tracked.item() == views_of_micro_batches for norm in norms)
    assert all(norm.track_running_stats for norm in norms)


class Noisy(nn.Module):
    """Noise that differs from call to call: what was drawn must be drawn again."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * torch.rand_like(features)


def test_what_is_drawn_in_a_forward_pass_is_the_same_in_both():
    seen = []

    def prepare(method):
        without_batch_norm(method)
        method.projector.append(Noisy())
        method.projector.register_forward_hook(lambda module, given, result: seen.append(result.detach().clone()))

    run = run_of("simclr", 4, prepare)
    gradient_of(run)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == 2 * 4
    torch.testing.assert_close(first, second)
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize("size", [16, 3, 32])
def test_a_size_that_does_not_divide_the_batch_is_refused(size):
    with pytest.raises(UserError, match=f"size of simclr is {size}; allowed: 0 .* divides .* share of the batch, 16"):
        check_batch(pretraining("simclr", micro_batch_size=size), 64, 1)


def test_an_estimate_tries_micro_batches_too(monkeypatch):
    run, calls = run_of("simclr", 4), []
    monkeypatch.setattr("lib.core.trainer._carry", lambda *given: calls.append(given))
    assert run.estimate() > 0
    assert len(calls) == 2 * 2 * 2  # for each half of the training a warm-up and a timed step of two micro-batches
