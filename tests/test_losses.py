"""Closed-form values of NT-Xent and of the distance of views, and slow twins written from docs/methods.md."""

import math

import lightly.loss
import pytest
import torch
from lib.losses.ntxent import nt_xent
from lib.losses.view_distance import frobenius_distance
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def random_pair(count: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    stream = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * count, width, generator=stream, dtype=dtype)
    first, second = normalize(rows, dim=1).chunk(2)
    return first, second


def nt_xent_by_loops(first, second, temperature: float) -> float:
    rows = [*first.double(), *second.double()]
    count = len(first)
    total = 0.0
    for i, row in enumerate(rows):
        partner = (i + count) % (2 * count)
        others = sum(math.exp(float(row @ other) / temperature) for k, other in enumerate(rows) if k != i)
        total += -float(row @ rows[partner]) / temperature + math.log(others)
    return total / len(rows)


def nt_xent_at_once(first, second, temperature: float) -> torch.Tensor:
    """The whole matrix, differentiated by autograd."""
    rows = torch.cat([first, second])
    logits = (rows @ rows.T / temperature).masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    return cross_entropy(logits, torch.arange(len(rows)).roll(len(first)))


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation gave back."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.elements = max(
            [self.elements, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))]
        )
        return result


def simplex(count: int) -> torch.Tensor:
    """``count`` unit vectors with pairwise cosine -1 / (count - 1)."""
    return normalize(torch.eye(count, dtype=torch.float64) - 1 / count, dim=1).float()


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 5, 16])
def test_nt_xent_equals_its_formula(count, temperature):
    first, second = random_pair(count, 12)
    expected = nt_xent_by_loops(first, second, temperature)
    assert nt_xent(first, second, temperature).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_an_independent_implementation(temperature):
    first, second = random_pair(64, 32)
    other = SelfSupervisedLoss(NTXentLoss(temperature=temperature))
    assert nt_xent(first, second, temperature).item() == pytest.approx(other(first, second).item(), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("count", [2, 64])
def test_nt_xent_has_the_value_and_gradient_of_a_third_implementation(count, temperature):
    """Theirs scales the rows to unit length itself, so the gradients are compared where both do."""
    raw, found = torch.randn(2, count, 32, generator=torch.Generator().manual_seed(7)), []
    theirs = lightly.loss.NTXentLoss(temperature)
    for function in (lambda a, b: nt_xent(normalize(a, dim=1), normalize(b, dim=1), temperature), theirs):
        leaf = raw.clone().requires_grad_()
        value = function(*leaf)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    assert found[0][1].abs().max() > 1e-3


@pytest.mark.parametrize(("count", "value"), [(256, 6.236370), (512, 6.930495)])
@pytest.mark.parametrize("temperature", [0.2, 0.5])
def test_identical_rows_give_log_of_the_others(count, value, temperature):
    same = normalize(torch.ones(count, 8), dim=1)
    assert nt_xent(same, same, temperature).item() == pytest.approx(value, abs=1e-5)


def test_orthogonal_rows_give_log_of_the_others():
    rows = torch.eye(16)
    assert nt_xent(rows[:8], rows[8:], 0.5).item() == pytest.approx(math.log(15), abs=1e-6)


@pytest.mark.parametrize(("count", "value"), [(4, 0.594438), (8, 1.062879)])
def test_identical_positives_among_orthogonal_images(count, value):
    assert nt_xent(torch.eye(count), torch.eye(count), 0.5).item() == pytest.approx(value, abs=1e-6)


def test_antipodal_positives_among_orthogonal_images():
    assert nt_xent(torch.eye(4), -torch.eye(4), 0.5).item() == pytest.approx(3.814065, abs=1e-6)


@pytest.mark.parametrize(
    ("count", "temperature", "floor"), [(256, 0.5, 4.241064), (512, 0.5, 4.932835), (256, 0.2, 1.474678)]
)
def test_the_simplex_reaches_the_floor(count, temperature, floor):
    rows = simplex(count)
    assert nt_xent(rows, rows, temperature).item() == pytest.approx(floor, abs=1e-5)


def test_nothing_random_is_below_the_floor():
    for seed in range(5):
        first, second = random_pair(256, 300, seed)
        assert nt_xent(first, second, 0.5).item() > 4.241064


def test_nt_xent_does_not_see_order_side_or_rotation():
    first, second = random_pair(20, 10)
    value = nt_xent(first, second, 0.5).item()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(2)))[0]
    assert nt_xent(first[order], second[order], 0.5).item() == pytest.approx(value, abs=1e-6)
    assert nt_xent(second, first, 0.5).item() == pytest.approx(value, abs=1e-6)
    assert nt_xent(first @ rotation, second @ rotation, 0.5).item() == pytest.approx(value, abs=1e-6)
    assert abs(nt_xent(first, second[order], 0.5).item() - value) > 1e-3  # the pairing itself does matter


def test_the_gradient_of_raw_rows_is_orthogonal_to_them():
    raw = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    first, second = normalize(raw, dim=2)
    nt_xent(first, second, 0.5).backward()
    assert (raw * raw.grad).sum(2).abs().max().item() < 1e-7
    assert raw.grad.abs().max().item() > 1e-4


def test_nt_xent_gradient_is_the_numerical_one():
    base = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    direction = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))

    def value(step: float) -> float:
        rows = normalize(base.double() + step * direction.double(), dim=1)
        return nt_xent_by_loops(rows[:3], rows[3:], 0.5)

    raw = base.clone().requires_grad_()
    rows = normalize(raw, dim=1)
    nt_xent(rows[:3], rows[3:], 0.5).backward()
    numerical = (value(1e-4) - value(-1e-4)) / 2e-4
    assert (raw.grad * direction).sum().item() == pytest.approx(numerical, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("elements", [1, 5 * 42, 42 * 42])  # one row, five rows, all 42 rows at a time
def test_nt_xent_in_tiles_has_the_value_and_gradient_of_the_whole_matrix(monkeypatch, temperature, elements):
    monkeypatch.setattr("lib.losses.ntxent.TILE", elements)
    raw = torch.randn(2, 21, 8, generator=torch.Generator().manual_seed(6))
    gradients = []
    for function in (nt_xent, nt_xent_at_once):
        leaf = raw.clone().requires_grad_()
        value = function(*normalize(leaf, dim=2), temperature)
        (3 * value).backward()
        gradients.append((value.detach(), leaf.grad))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("elements", [30, 100])  # three rows, all ten rows at a time
def test_nt_xent_passes_the_numerical_check_of_its_gradient(monkeypatch, elements):
    monkeypatch.setattr("lib.losses.ntxent.TILE", elements)
    first, second = (rows.requires_grad_() for rows in random_pair(5, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), (first, second))


def test_nt_xent_never_holds_its_matrix(monkeypatch):
    monkeypatch.setattr("lib.losses.ntxent.TILE", 2**14)
    first, second = (rows.requires_grad_() for rows in random_pair(512, 8))
    with LargestTensor() as largest:
        nt_xent(first, second, 0.5).backward()
    assert largest.elements == 2**14  # the matrix has 2**20


def test_tiles_cover_every_row_once():
    assert [(part.start, part.stop) for part in tiles.chunks(7, 10, 30)] == [(0, 3), (3, 6), (6, 7)]
    assert [(part.start, part.stop) for part in tiles.chunks(2, 10, 3)] == [(0, 1), (1, 2)]


def test_distance_equals_its_formula_and_the_mean_cosine():
    first, second = random_pair(50, 16)
    value = frobenius_distance(first, second).item()
    squares = sum(float((a - b) ** 2) for x, y in zip(first.double(), second.double()) for a, b in zip(x, y))
    assert value == pytest.approx(math.sqrt(squares), abs=1e-5)
    cosine = (first * second).sum(1).mean().item()
    assert value**2 == pytest.approx(2 * 50 * (1 - cosine), rel=1e-5)


def test_distance_at_its_corners():
    rows = torch.eye(512)[:256]
    assert 0.01 * frobenius_distance(rows, torch.eye(512)[256:]).item() == pytest.approx(0.226274, abs=1e-6)
    assert 0.01 * frobenius_distance(rows, -rows).item() == pytest.approx(0.320000, abs=1e-6)
    assert frobenius_distance(rows, rows).item() == pytest.approx(0.0, abs=2e-6)


def test_distance_has_a_finite_gradient_where_the_views_coincide():
    first = torch.eye(8).requires_grad_()
    frobenius_distance(first, torch.eye(8)).backward()
    assert first.grad.isfinite().all() and first.grad.abs().max() == 0


def test_the_gradient_norm_of_the_distance_is_one_for_each_view():
    first, second = (rows.clone().requires_grad_() for rows in random_pair(30, 8))
    frobenius_distance(first, second).backward()
    assert first.grad.norm().item() == pytest.approx(1.0, abs=1e-5)
    assert second.grad.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_a_step_on_the_distance_alone_pulls_the_views_together():
    first, second = (rows.clone().requires_grad_() for rows in random_pair(30, 8))
    before = (first * second).sum(1).mean().item()
    frobenius_distance(first, second).backward()
    with torch.no_grad():
        moved = [normalize(rows - 0.1 * rows.grad, dim=1) for rows in (first, second)]
    assert (moved[0] * moved[1]).sum(1).mean().item() > before
