"""Losses whose values were once wrong for a caller's autocast, a half-precision row, or a nearly solved batch."""

import pytest
import torch
from torch.nn import functional

from lib.methods.cmc import first_log_normalizer, nce_error
from lib.methods.cpc import false_logits, hinge, info_nce, true_logits
from lib.methods.simclr import frobenius_distance, nt_xent


@pytest.mark.parametrize("autocast", [False, True])
def test_patch_losses_are_fp32_inside_whatever_the_autocast(autocast):
    torch.manual_seed(0)
    predicted, codes, draws = torch.randn(4, 3, 64), torch.randn(4, 3, 64), torch.randint(12, (4, 3, 16))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        true, false = true_logits(predicted, codes), false_logits(predicted, codes, draws)
        assert info_nce(true, false).item() == pytest.approx(12.2541, abs=5e-5)
        pushed = hinge(true, false, same=torch.tensor([True, False, True, False]))
    assert pushed.dtype == torch.float32
    exact = ((predicted.double()[:, :, None] * codes.double().flatten(0, 1)[draws]).sum(3) - false).abs().max()
    assert exact < 1e-5


def test_the_distance_of_views_keeps_fp64():
    torch.manual_seed(0)
    first, second = (functional.normalize(torch.randn(64, 16, dtype=torch.float64), dim=1) for _ in range(2))
    expected = sum(((a - b) ** 2).sum() for a, b in zip(first, second)) ** 0.5
    assert frobenius_distance(first, second).dtype == torch.float64
    assert abs(frobenius_distance(first, second) - expected) < 1e-11
    assert torch.autograd.gradcheck(frobenius_distance, (first[:4].requires_grad_(), second[:4].requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_normalizer_of_nce_survives_a_temperature_of_a_hundredth(dtype):
    """exp(100) does not fit into fp32; its logarithm does."""
    logits = torch.full((8, 5), -20.0, dtype=dtype)
    logits[:, 0] = 100  # queries equal to their rows
    normalizer = first_log_normalizer(logits, images=100)
    expected = (
        torch.logsumexp(logits.double().flatten(), 0) - torch.tensor(logits.numel()).log() + torch.tensor(100.0).log()
    )
    assert normalizer.isfinite() and abs(normalizer.double() - expected) < 1e-4
    assert nce_error(logits, normalizer, images=100).isfinite()


def test_half_precision_rows_within_autocast_are_no_error():
    torch.manual_seed(0)
    rows = [functional.normalize(torch.randn(16, 8), dim=1) for _ in range(2)]
    exact = nt_xent(*rows, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        half = nt_xent(rows[0].half().requires_grad_(), rows[1].half(), 0.5)
        half.backward()
    assert half.dtype == torch.float32 and abs(half - exact) < 1e-3


def test_the_gradient_of_a_nearly_solved_batch_is_as_precise_as_cross_entropy():
    torch.manual_seed(0)
    first = functional.normalize(torch.randn(128, 128, dtype=torch.float64), dim=1)
    second = functional.normalize(first + 0.3 * functional.normalize(torch.randn_like(first), dim=1), dim=1)

    def gradient(loss, dtype):
        rows = first.to(dtype).clone().requires_grad_(), second.to(dtype).clone().requires_grad_()
        loss(*rows).backward()
        return rows[0].grad.double()

    def reference(a, b):
        rows = torch.cat([a, b])
        logits = (rows @ rows.T / 0.05).fill_diagonal_(-torch.inf)
        return functional.cross_entropy(logits, torch.arange(256).roll(128))

    exact = gradient(reference, torch.float64)
    ours, theirs = (
        (gradient(loss, torch.float32) - exact).norm() for loss in (lambda a, b: nt_xent(a, b, 0.05), reference)
    )
    assert reference(first, second) < 1e-4 and ours <= 2 * theirs
