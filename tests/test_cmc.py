"""CMC (docs/methods.md, 11): color conversion, the three forms of its loss, the banks, encoders of half width."""

import dataclasses
import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch.nn.functional import normalize

from lib.core.trainer import Pretrainer
from lib.encoders import build_encoder
from lib.losses.cmc import bank_scores, first_normalizer, in_batch, nce_error, softmax_error
from lib.methods import build_method
from lib.methods.base import count_parameters
from lib.methods.export import load_method, save_method
from lib.methods.parts.lab import normalized_lab, rgb_to_lab
from lib.runtime.errors import UserError
from tests.examples import CPU, images, pretraining

SIZE = 16


def method_of(form: str = "batch", **options):
    params = dataclasses.replace(pretraining("cmc"), options={"form": form, **options})
    torch.manual_seed(0)
    return build_method(params)


def run_of(form: str, **options) -> Pretrainer:
    method = method_of(form, **options)
    return Pretrainer(method, images(), dataclasses.replace(pretraining("cmc"), options={"form": form, **options}), CPU)


def rows(count: int, width: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=stream, dtype=dtype), dim=1)


def pixel(*rgb: float) -> torch.Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1)


# color


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_corners_of_the_color_cube(rgb, lab):
    assert rgb_to_lab(pixel(*map(float, rgb))).flatten().tolist() == pytest.approx(lab, abs=0.02)


def test_every_grey_has_no_color_and_grows_lighter():
    grays = torch.linspace(0, 1, 256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    lightness, *color = rgb_to_lab(grays).flatten(2)[0]
    assert torch.stack(color).abs().max() < 2e-3
    assert (lightness.diff() > 0).all()


def lab_of_a_pixel(rgb: list[float]) -> list[float]:
    """The definition, a number at a time in double precision."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    shares = [sum(m * c for m, c in zip(row, linear)) / sum(row) for row in matrix]
    f = [t ** (1 / 3) if t > (6 / 29) ** 3 else t * (29 / 6) ** 2 / 3 + 4 / 29 for t in shares]
    return [116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]


def test_conversion_against_a_slow_twin():
    picture = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0)).pow(3)  # many dark pixels
    expected = [lab_of_a_pixel(rgb) for rgb in picture.permute(0, 2, 3, 1).reshape(-1, 3).tolist()]
    found = rgb_to_lab(picture).permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-3, rtol=1e-5)


def test_views_are_undone_and_scaled_to_one():
    picture = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.3, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    views = (picture - mean[:, None, None]) / std[:, None, None]
    lab = rgb_to_lab(picture)
    expected = torch.stack([(lab[:, 0] - 50) / 50, (lab[:, 1] - 6.025) / 92.208, (lab[:, 2] + 6.6895) / 101.1675], 1)
    torch.testing.assert_close(normalized_lab(views, mean, std), expected, atol=1e-4, rtol=1e-4)
    cube = torch.cartesian_prod(*[torch.linspace(0, 1, 9)] * 3).T.reshape(1, 3, 27, 27)
    low, high = normalized_lab(cube, torch.zeros(3), torch.ones(3)).flatten(2).aminmax(dim=2)
    torch.testing.assert_close(low, -torch.ones(1, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(high, torch.ones(1, 3), atol=1e-3, rtol=0)


def test_conversion_stays_in_fp32_under_autocast():
    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = rgb_to_lab(picture)
    assert inside.dtype == torch.float32 and torch.equal(inside, rgb_to_lab(picture))


# losses


def both(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    return (in_batch(first, second, temperature) + in_batch(second, first, temperature)).item()


@pytest.mark.parametrize(("count", "temperature"), [(4, 0.5), (8, 0.1), (16, 0.07)])
def test_in_batch_at_its_corners(count, temperature):
    basis = torch.eye(2 * count)
    first, second = basis[:count], basis[count:]
    floor = 2 * math.log(1 + (count - 1) * math.exp(-1 / temperature))
    assert both(first, first, temperature) == pytest.approx(floor, rel=1e-5, abs=1e-6)
    assert both(first, second, temperature) == pytest.approx(2 * math.log(count), rel=1e-6)
    same = first[:1].expand(count, -1)
    assert both(same, same, temperature) == pytest.approx(2 * math.log(count), rel=1e-6)


def test_in_batch_against_a_slow_twin():
    first, second = rows(7, 5), rows(7, 5, 1)
    expected = 0.0
    for one, other in ((first, second), (second, first)):
        for i in range(7):
            scores = [math.exp(float(one[i] @ other[j]) / 0.2) for j in range(7)]
            expected -= math.log(scores[i] / sum(scores)) / 7
    assert both(first, second, 0.2) == pytest.approx(expected, rel=1e-5)


def test_in_batch_is_another_implementations():
    first, second, images_ = rows(7, 5), rows(7, 5, 1), torch.arange(7)
    for one, other in ((first, second), (second, first)):
        theirs = NTXentLoss(0.2)(one, images_, ref_emb=other, ref_labels=images_.clone())
        torch.testing.assert_close(in_batch(one, other, 0.2), theirs, atol=1e-5, rtol=1e-5)


def test_a_method_adds_both_directions():
    first, second = rows(6, 128), rows(6, 128, 1)
    total, parts = method_of().loss({"z_l": first, "z_ab": second, "indices": torch.arange(6)})
    assert total.item() == pytest.approx(both(first, second, 0.1), rel=1e-6)
    assert set(parts) == {"find_l", "find_ab"}


def test_bank_forms_where_all_scores_are_equal():
    scores = torch.full((3, 1 + 40), 2.5)
    assert softmax_error(scores).item() == pytest.approx(math.log(41), rel=1e-6)
    images_, m = 50_000, 4096
    level = torch.full((2, 1 + m), 1.0, dtype=torch.float64)
    even = first_normalizer(level, images_)  # P = 1 / n everywhere
    assert nce_error(level, even, images_).item() == pytest.approx(9.317888, abs=1e-6)
    assert math.log(1 + m) + m * math.log(1 + 1 / m) == pytest.approx(9.317888, abs=1e-6)


def test_bank_forms_against_slow_twins():
    n, m, temperature = 9, 4, 0.3
    queries, bank = rows(5, 6), rows(n, 6, 1)
    own, others = torch.tensor([3, 0, 8, 2, 5]), torch.randint(n, (5, m), generator=torch.Generator().manual_seed(2))
    scores = bank_scores(queries, bank, own, others, temperature)
    normalizer = torch.tensor(7.0)
    softmax = nce = 0.0
    for i in range(5):
        found = [math.exp(float(queries[i] @ bank[j]) / temperature) for j in [own[i], *others[i]]]
        softmax -= math.log(found[0] / sum(found)) / 5
        shares = [value / 7.0 for value in found]
        nce -= math.log(shares[0] / (shares[0] + m / n)) / 5
        nce -= sum(math.log((m / n) / (share + m / n)) for share in shares[1:]) / 5
    assert softmax_error(scores).item() == pytest.approx(softmax, rel=1e-5)
    assert nce_error(scores, normalizer, n).item() == pytest.approx(nce, rel=1e-5)


def test_gradients():
    first, second = (rows(5, 4, seed, torch.float64).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda a, b: in_batch(a, b, 0.3), (first, second))
    bank, own = rows(8, 4, 2, torch.float64), torch.arange(5)
    others = torch.randint(8, (5, 3), generator=torch.Generator().manual_seed(3))
    constant = torch.tensor(30.0, dtype=torch.float64)
    for error in (softmax_error, lambda scores: nce_error(scores, constant, 8)):
        assert torch.autograd.gradcheck(lambda a: error(bank_scores(a, bank, own, others, 0.3)), (first,))


# the banks


@pytest.mark.parametrize("form", ["bank", "nce"])
def test_a_step_moves_the_rows_of_its_images_alone(form):
    run = run_of(form, negatives=30)
    before = {side: getattr(run.method, f"bank_{side}").clone() for side in ("l", "ab")}
    for bank in before.values():
        assert bank.shape == (64, 128)
        torch.testing.assert_close(bank.norm(dim=1), torch.ones(64))
    assert not torch.equal(before["l"], before["ab"])
    order = run.order(0)[0]
    seen = {}
    loss = run.method.loss

    def spy(embeddings):
        assert all(torch.equal(before[side], getattr(run.method, f"bank_{side}")) for side in before)
        seen.update(embeddings)
        return loss(embeddings)

    run.method.loss = spy
    run.step(0, 0, order)
    assert torch.equal(seen["indices"], order)
    for side, bank in before.items():
        after = getattr(run.method, f"bank_{side}")
        moved = normalize(0.5 * bank[order] + 0.5 * seen[f"z_{side}"].detach(), dim=1)
        torch.testing.assert_close(after[order], moved)
        torch.testing.assert_close(after.norm(dim=1), torch.ones(64))
        others = torch.ones(64, dtype=torch.bool)
        others[order] = False
        assert torch.equal(after[others], bank[others])


def test_each_side_is_scored_against_the_bank_of_the_other():
    run = run_of("bank", negatives=10)
    z = {"z_l": rows(4, 128), "z_ab": rows(4, 128, 1), "indices": torch.arange(4)}
    run.method.bank_ab[:4] = z["z_l"]  # what the lightness looks for is there
    parts = run.method.loss(z)[1]
    assert parts["find_ab"].item() < 0.1 < parts["find_l"].item()


def test_an_image_is_never_its_own_negative():
    run = run_of("bank", negatives=3000)
    run.method.bank_ab.zero_()
    run.method.bank_ab[5] = run.method.bank_l[5]
    z = run.method.bank_l[5:6].clone()
    parts = run.method.loss({"z_l": z, "z_ab": z, "indices": torch.tensor([5])})[1]
    # scores 1 / T at the image itself, 0 at every negative
    assert parts["find_ab"].item() == pytest.approx(math.log(1 + 3000 * math.exp(-10)), rel=1e-4)


def test_no_gradient_reaches_a_bank():
    run = run_of("bank", negatives=10)
    run.method.bank_l.requires_grad_(), run.method.bank_ab.requires_grad_()
    run.gradient(0, 0, run.order(0)[0])
    assert run.method.bank_l.grad is None and run.method.bank_ab.grad is None


def test_the_normalizers_of_nce_are_those_of_the_first_step():
    run = run_of("nce", negatives=30)
    assert run.method.normalizers.tolist() == [0, 0]
    order = run.order(0)
    run.step(0, 0, order[0])
    first = run.method.normalizers.clone()
    assert (first > 0).all()
    run.step(0, 1, order[1])
    assert torch.equal(run.method.normalizers, first)


@pytest.mark.parametrize("form", ["batch", "bank", "nce"])
def test_training_lowers_the_loss_and_goes_on_from_a_saved_state(form):
    options = {} if form == "batch" else {"negatives": 30}
    whole, parts = run_of(form, **options), run_of(form, **options)
    batch = whole.order(0)[0]
    values = [whole.step(0, step, batch)[0].item() for step in range(4)]
    assert values[-1] < values[0]
    for step in range(4):
        state = {name: value.clone() for name, value in parts.method.state_dict().items()}
        optimizer = parts.optimizer.state_dict()
        parts = run_of(form, **options)
        parts.method.load_state_dict(state)
        parts.optimizer.load_state_dict(optimizer)
        assert parts.step(0, step, batch)[0].item() == values[step]
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, parts.method.state_dict()[name]), name


@pytest.mark.parametrize("form", ["batch", "bank", "nce"])
def test_a_file_holds_the_bank_of_its_data(form, tmp_path):
    options = {} if form == "batch" else {"negatives": 30}
    run = run_of(form, **options)
    run.step(0, 0, run.order(0)[0])
    save_method(tmp_path / "cmc.safetensors", run.method, run.params, {"checksum": "c"})
    loaded, about = load_method(tmp_path / "cmc.safetensors")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in run.method.state_dict().items())
    assert about["network"]["inputs"] == "L and ab"
    assert loaded.mean.tolist() == pytest.approx([0.4] * 3)


# the method


def test_an_encoder_sees_its_own_channels_alone():
    method = method_of().eval()
    lab = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    other_color, other_lightness = lab.clone(), lab.clone()
    other_color[:, 1:] += 1
    other_lightness[:, :1] += 1
    half = method.encoder.width // 2
    with torch.no_grad():
        plain, color, lightness = map(method.encoder, (lab, other_color, other_lightness))
    assert torch.equal(plain[:, :half], color[:, :half]) and not torch.equal(plain[:, half:], color[:, half:])
    assert torch.equal(plain[:, half:], lightness[:, half:]) and not torch.equal(plain[:, :half], lightness[:, :half])


def test_the_main_latent_is_both_sides():
    method = method_of().eval()
    views = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = method.latents(views)
    assert list(latents) == ["h", "l", "ab"] and latents["h"].shape == (3, method.encoder.width)
    assert torch.equal(latents["h"], torch.cat([latents["l"], latents["ab"]], 1))


def test_a_grey_image_has_the_color_latent_of_every_other():
    method = method_of().eval()
    run = Pretrainer(method, images(), pretraining("cmc"), CPU)
    run.method.eval()
    gray = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).expand(4, 3, SIZE, SIZE)
    with torch.no_grad():
        latents = method.latents((gray - 0.4) / 0.2)
    assert latents["ab"].std(0).max() < 1e-3 < latents["l"].std(0).max()


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048), ("small", 512)])
def test_two_encoders_of_half_width_are_as_wide_as_one_and_smaller(name, width):
    with torch.device("meta"):
        method = build_method(dataclasses.replace(pretraining("cmc"), encoder=name))
        whole = count_parameters(build_encoder(name))
    assert method.encoder.width == width
    assert 0.45 < count_parameters(method.encoder) / whole < 0.55
    assert method.heads["l"].weight.shape == method.heads["ab"].weight.shape == (128, width // 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negatives": 5}, "variants.cmc.negatives is 5, which has no effect with form batch; set form to bank or nce"),
        ({"bank_momentum": 0.9}, "variants.cmc.bank_momentum is 0.9, which has no effect"),
        ({"form": "queue"}, "variants.cmc.form is 'queue'; allowed: 'batch', 'bank', 'nce'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        build_method(dataclasses.replace(pretraining("cmc"), options=options))


def test_grey_views_are_refused():
    params = pretraining("cmc")
    with pytest.raises(UserError, match="augment.grayscale is 0.2 for the variant cmc; allowed: 0"):
        build_method(dataclasses.replace(params, augment=dataclasses.replace(params.augment, grayscale=0.2)))
