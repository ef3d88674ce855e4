"""CMC (docs/methods.md, 11): color conversion, the three forms of its loss, the banks, encoders of half width."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch.nn.functional import normalize

from lib.encoders import build_encoder
from lib.methods.base import count_parameters
from lib.methods.cmc import bank_logits, first_log_normalizer, in_batch, nce_error, softmax_error
from lib.views.lab import normalized_lab, rgb_to_lab
from tests.examples import built, directions, normal

# color


def test_corners_of_the_color_cube_and_grays_without_color():
    colors = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).T.view(1, 3, 1, 5)
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    torch.testing.assert_close(rgb_to_lab(colors)[0, :, 0].T, torch.tensor(known), atol=0.02, rtol=0)
    lightness, *color = rgb_to_lab(torch.linspace(0, 1, 256).view(1, 1, 16, 16).expand(1, 3, 16, 16)).flatten(2)[0]
    assert torch.stack(color).abs().max() < 2e-3 and (lightness.diff() > 0).all()


def lab_of_a_pixel(rgb: list[float]) -> list[float]:
    """The definition, a number at a time in double precision."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    shares = [sum(m * c for m, c in zip(row, linear)) / sum(row) for row in matrix]
    f = [t ** (1 / 3) if t > (6 / 29) ** 3 else t * (29 / 6) ** 2 / 3 + 4 / 29 for t in shares]
    return [116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]


def test_conversion_against_a_slow_twin_whatever_the_autocast():
    picture = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0)).pow(3)  # many dark pixels
    expected = [lab_of_a_pixel(rgb) for rgb in picture.permute(0, 2, 3, 1).reshape(-1, 3).tolist()]
    lab = rgb_to_lab(picture)
    torch.testing.assert_close(lab.permute(0, 2, 3, 1).reshape(-1, 3), torch.tensor(expected), atol=2e-3, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rgb_to_lab(picture), lab)


def test_normalization_is_undone_and_channels_are_scaled_to_one():
    cube = torch.cartesian_prod(*[torch.linspace(0, 1, 9)] * 3).T.reshape(1, 3, 27, 27)
    mean, std = torch.tensor([0.3, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    scaled = normalized_lab((cube - mean[:, None, None]) / std[:, None, None], mean, std)
    low, high = scaled.flatten(2).aminmax(dim=2)
    torch.testing.assert_close(torch.stack([low, high]), torch.tensor([[[-1.0] * 3], [[1.0] * 3]]), atol=1e-3, rtol=0)
    middle, half = torch.tensor([[50, 6.025, -6.6895], [50, 92.208, 101.1675]])[:, :, None, None]
    torch.testing.assert_close(scaled * half + middle, rgb_to_lab(cube), atol=1e-2, rtol=0)


# losses


def both(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    return (in_batch(first, second, temperature) + in_batch(second, first, temperature)).item()


@pytest.mark.parametrize(("count", "temperature"), [(4, 0.5), (8, 0.1), (16, 0.07)])
def test_in_batch_at_its_corners(count, temperature):
    first, second = torch.eye(2 * count).chunk(2)
    floor = 2 * math.log(1 + (count - 1) * math.exp(-1 / temperature))
    assert both(first, first, temperature) == pytest.approx(floor, rel=1e-5, abs=1e-6)
    assert both(first, second, temperature) == pytest.approx(2 * math.log(count), rel=1e-6)
    same = first[:1].expand(count, -1)
    assert both(same, same, temperature) == pytest.approx(2 * math.log(count), rel=1e-6)


def test_in_batch_against_a_slow_twin_and_another_implementation():
    first, second = directions(7, 5), directions(7, 5, seed=1)
    for queries, keys in ((first, second), (second, first)):
        expected = 0.0
        for i in range(7):
            shares = [math.exp(float(queries[i] @ keys[j]) / 0.2) for j in range(7)]
            expected -= math.log(shares[i] / sum(shares)) / 7
        assert in_batch(queries, keys, 0.2).item() == pytest.approx(expected, rel=1e-5)
        theirs = NTXentLoss(0.2)(queries, torch.arange(7), ref_emb=keys, ref_labels=torch.arange(7))
        torch.testing.assert_close(in_batch(queries, keys, 0.2), theirs, atol=1e-5, rtol=1e-5)
    total, parts = built("cmc", temperature=0.2).loss({"z_l": first, "z_ab": second})
    assert total.item() == pytest.approx(both(first, second, 0.2)) and list(parts) == ["find_ab", "find_l"]


def test_bank_forms_where_all_logits_are_equal():
    assert softmax_error(torch.full((3, 1 + 40), 2.5)).item() == pytest.approx(math.log(41), rel=1e-6)
    images, m = 50_000, 4096
    level = torch.full((2, 1 + m), 1.0, dtype=torch.float64)
    even = first_log_normalizer(level, images)  # P = 1 / n everywhere
    assert nce_error(level, even, images).item() == pytest.approx(9.317888, abs=1e-6)
    assert math.log(1 + m) + m * math.log(1 + 1 / m) == pytest.approx(9.317888, abs=1e-6)


def test_bank_forms_against_slow_twins():
    n, m, temperature = 9, 4, 0.3
    queries, bank = directions(5, 6), directions(n, 6, seed=1)
    own, others = torch.tensor([3, 0, 8, 2, 5]), torch.randint(n, (5, m), generator=torch.Generator().manual_seed(2))
    logits = bank_logits(queries, bank, own, others, temperature)
    softmax = nce = 0.0
    grown = [
        [math.exp(float(queries[i] @ bank[j]) / temperature) for j in [own[i], *others[i]]] for i in range(len(own))
    ]
    z = n * sum(map(sum, grown)) / (5 * (1 + m))
    for true, *false in grown:
        softmax -= math.log(true / (true + sum(false))) / 5
        nce -= math.log(true / z / (true / z + m / n)) / 5
        nce -= sum(math.log((m / n) / (value / z + m / n)) for value in false) / 5
    assert softmax_error(logits).item() == pytest.approx(softmax, rel=1e-5)
    assert first_log_normalizer(logits, n).item() == pytest.approx(math.log(z), rel=1e-5)
    assert nce_error(logits, first_log_normalizer(logits, n), n).item() == pytest.approx(nce, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nce_is_finite_where_the_exponential_of_a_logit_is_not(dtype):
    """At temperature 0.01 four queries are their rows of the bank, and one of all 20 negatives is the query itself.

    Z = 5 e^100 n / 24, so that P = 24 / (5 n) in these five places and 0 elsewhere; m / n is 5 / n.
    """
    bank, own = torch.eye(20, dtype=dtype), torch.arange(4)
    negatives = own[:, None] + torch.arange(1, 6)
    negatives[0, 0] = 0
    logits = bank_logits(bank[:4], bank, own, negatives, 0.01)
    loss = nce_error(logits, first_log_normalizer(logits, 20), 20).item()
    assert loss == pytest.approx(math.log(9.8 / 4.8) + math.log(9.8 / 5) / 4, rel=1e-5)


# the banks


@pytest.mark.parametrize("form", ["bank", "nce"])
def test_a_step_moves_the_rows_of_its_images_alone(form):
    method, own = built(f"cmc_{form}"), torch.tensor([5, 60, 0, 17])
    before = {side: getattr(method, f"bank_{side}").clone() for side in ("l", "ab")}
    assert not torch.equal(before["l"], before["ab"])
    embeddings = {"z_l": directions(4, 128), "z_ab": directions(4, 128, seed=1), "indices": own}
    method.loss(embeddings)
    assert all(torch.equal(bank, getattr(method, f"bank_{side}")) for side, bank in before.items())  # not yet
    method.after_step(0, 8)
    for side, bank in before.items():
        after = getattr(method, f"bank_{side}")
        assert bank.shape == (64, 128)
        for every in (bank, after):
            torch.testing.assert_close(every.norm(dim=1), torch.ones(64))
        torch.testing.assert_close(after[own], normalize(0.5 * bank[own] + 0.5 * embeddings[f"z_{side}"], dim=1))
        others = [row for row in range(64) if row not in own]
        assert torch.equal(after[others], bank[others])


def test_each_side_looks_in_the_bank_of_the_other_which_gets_no_gradient():
    method, z = built("cmc_bank", negatives=10), dict(zip(("z_l", "z_ab"), directions(2, 4, 128).unbind()))
    method.bank_ab[:4] = z["z_l"]  # what the lightness looks for is there
    for values in (z["z_l"], method.bank_l, method.bank_ab):
        values.requires_grad_()
    total, parts = method.loss({**z, "indices": torch.arange(4)})
    assert parts["find_ab"].item() < 0.1 < parts["find_l"].item()
    total.backward()
    assert z["z_l"].grad.abs().max() > 0 and method.bank_l.grad is None and method.bank_ab.grad is None


def test_an_image_is_never_its_own_negative():
    method = built("cmc_bank", negatives=3000)
    method.bank_ab.zero_()
    z = method.bank_ab[5:6] = method.bank_l[5:6]
    parts = method.loss({"z_l": z, "z_ab": z, "indices": torch.tensor([5])})[1]
    # logits 1 / T at the image itself, 0 at every negative
    assert parts["find_ab"].item() == pytest.approx(math.log(1 + 3000 * math.exp(-10)), rel=1e-4)


def test_the_normalizers_of_nce_are_those_of_the_first_step_also_where_logits_are_large():
    method = built("cmc_nce", temperature=0.01, negatives=30)
    assert method.log_normalizers.tolist() == [-math.inf] * 2
    seen = []
    for step in range(2):
        own = torch.arange(16) + 16 * step
        z = {"z_l": method.bank_ab[own].clone(), "z_ab": directions(16, 128, seed=7), "indices": own}
        total, parts = method.loss(z)
        method.after_step(step, 8)
        seen.append(method.log_normalizers.clone())
        assert total.isfinite()
        assert parts["find_ab"].item() == pytest.approx(math.log(61 / 31), rel=1e-3)
    assert torch.equal(*seen) and seen[0][1].item() == pytest.approx(100 + math.log(64 / 31), abs=1e-3)


# the method


def test_each_side_sees_its_own_channels_alone_and_the_main_latent_is_both():
    method, lab = built("cmc").eval(), normal(2, 3, 16, 16)
    half, color = method.encoder.width // 2, torch.tensor([0.0, 1, 1]).view(3, 1, 1)
    gray = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(4, 3, 16, 16)
    with torch.no_grad():
        moved = [(method.encoder(lab) != method.encoder(lab + shift)).float() for shift in (color, 1 - color)]
        latents = method.latents((gray - 0.4) / 0.2)
    assert [side.any().item() for each in moved for side in each.split(half, 1)] == [False, True, True, False]
    assert list(latents) == ["h", "l", "ab"]
    assert torch.equal(latents["h"], torch.cat([latents["l"], latents["ab"]], 1))
    assert latents["ab"].std(0).max() < 1e-3 < latents["l"].std(0).max()


def test_two_encoders_of_half_width_are_as_wide_as_one_and_smaller():
    split, whole = built("cmc").encoder, build_encoder("small")
    assert (split.width, split.name, split.about()["inputs"]) == (whole.width, "small", "L and ab")
    assert 0.4 < count_parameters(split) / count_parameters(whole) < 0.6
