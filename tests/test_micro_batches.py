"""A batch taken in micro-batches: loss, gradient and statistics against the batch taken whole."""

import pytest
import torch
from torch import nn

from lib.core.passes import MicroBatches
from lib.core.trainer import Pretrainer
from tests.examples import EACH, VARIANTS, pretraining, trainer
from tests.two_processes import without_batch_norm

SIZES = dict.fromkeys(VARIANTS, 4) | {"moco_groups": 8}  # MoCo's groups are of 4, and keys move between two


def gradient_of(run: Pretrainer) -> tuple[torch.Tensor, list[torch.Tensor]]:
    values = run.forward_backward(0, 0, run.order(0)[0])
    return values, gradients(run)


def gradients(run: Pretrainer) -> list[torch.Tensor]:
    return [weight.grad for weight in run.method.parameters() if weight.requires_grad]


@pytest.mark.parametrize("variant", EACH)
def test_loss_and_gradient_are_those_of_the_whole_batch(variant):
    """Without BatchNorm, which normalizes within a micro-batch, the two are the same function."""
    whole, part = (
        gradient_of(trainer(variant, prepare=without_batch_norm, micro_batch_size=size)) for size in (0, SIZES[variant])
    )
    torch.testing.assert_close(part, whole, atol=1e-5 * max(1.0, whole[0][0].item()), rtol=1e-5)
    learning = [gradient for gradient in whole[1] if gradient is not None]
    assert learning and all(gradient.abs().max() > 0 for gradient in learning)
    in_turn = pretraining(variant).options.get("layers") == 2  # one layer first, then the other
    assert len(learning) == len(whole[1]) or in_turn


@pytest.mark.parametrize("variant", EACH)
def test_gradient_is_the_one_of_batch_norm_within_micro_batches(variant):
    """The same loss, written as one graph over all micro-batches at once."""
    size = SIZES[variant]
    values, found = gradient_of(trainer(variant, micro_batch_size=size))
    plain = trainer(variant, micro_batch_size=size)

    def one_graph(batch, loss):
        parts = [plain.embed(batch.rows(slice(start, start + size))) for start in range(0, 16, size)]
        outcome = loss({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        outcome[0].backward()
        return outcome

    plain.passes = one_graph
    expected = plain.forward_backward(0, 0, plain.order(0)[0])
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, gradients(plain), atol=1e-5, rtol=1e-4)


def test_groups_within_micro_batches_are_those_of_the_whole_batch():
    """With BatchNorm in groups, all is equal as long as no key changes its group.

    Keys are dealt out to the groups of their micro-batch, and so meet others than in the whole batch.
    """
    whole, part = (gradient_of(trainer("moco_groups", micro_batch_size=micro, shuffle=False)) for micro in (0, 8))
    torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-4)
    whole, part = (gradient_of(trainer("moco_groups", micro_batch_size=micro))[0][0] for micro in (0, 8))
    assert (part - whole).abs() > 1e-3


def test_each_micro_batch_counts_once_into_the_running_statistics():
    run = trainer(micro_batch_size=4)
    norms = [child for child in run.method.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    gradient_of(run)
    assert isinstance(run.passes, MicroBatches)
    assert norms and all(norm.num_batches_tracked.item() == 2 * 16 // 4 for norm in norms)
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
        method.projector.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.detach().clone()))

    gradient_of(trainer(prepare=prepare, micro_batch_size=4))
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == 2 * 4 and not torch.equal(first[0], first[2])
    torch.testing.assert_close(first, second)
