"""Sparse codes (docs/methods.md, 12): the kernel, scaling, the drive's units, what keeps codes apart."""

import math

import pytest
import torch
from torch import nn

from lib.evaluate.codes import is_binary, pattern_entropy, usage_entropy
from lib.methods import try_method
from lib.methods.kwta import active_units, cosines, hard_code, ramped, scaled, soft_code, threshold
from tests.examples import Training, built, natural, normal, normalized, pretraining

# the kernel


@pytest.mark.parametrize(
    ("sparsity", "units", "count"),
    [(0.05, 128, 7), (0.05, 256, 13), (0.05, 512, 26), (0.05, 2048, 103), (0.3, 128, 39), (0.1, 30, 3), (0.3, 10, 3)],
)
def test_the_number_of_active_units_is_rounded_up(sparsity, units, count):
    assert active_units(sparsity, units) == count


@pytest.mark.parametrize("count", [1, 5, 39])
def test_exactly_k_units_win_they_are_the_largest_and_of_those_that_tie_the_first_ones(count):
    rows = normal(6, 40)
    for row, bits in zip(rows.tolist(), hard_code(rows, torch.tensor(count)).tolist()):
        limit = sorted(row, reverse=True)[count - 1]
        assert bits == [1.0 if value >= limit else 0.0 for value in row] and sum(bits) == count
    equal = torch.tensor([[1.0, 1, 1, 1, 1], [0, 2, 1, 1, 1], [3, 3, 3, 0, 3]])
    assert hard_code(equal, torch.tensor(2)).tolist() == [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_only_the_order_of_a_row_matters_and_gradients_pass_straight_through():
    rows, count, gradient = normal(6, 40).requires_grad_(), torch.tensor(9), normal(6, 40, seed=1)
    code = hard_code(rows, count)
    code.backward(gradient)
    assert torch.equal(rows.grad, gradient)
    for other in (rows + normal(6, 1, seed=1), rows.exp(), 3 * rows + rows**3, code):  # the last: a code is its own
        assert torch.equal(hard_code(other, count), code)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert torch.equal(hard_code(rows[:, order], count), code[:, order])
    torch.testing.assert_close(cosines(code), code @ code.T / 9)  # the overlap over k


@pytest.mark.parametrize("form", ["sigmoid", "hard_sigmoid"])
def test_soft_codes_against_a_slow_twin_with_the_gradient_through_the_threshold(form):
    rows, gradient = normal(4, 9, dtype=torch.float64).requires_grad_(), normal(4, 9, seed=1, dtype=torch.float64)
    found = soft_code(rows, torch.tensor(3), torch.tensor(2.5, dtype=torch.float64), form)
    middle = torch.stack([sum(sorted(row.unbind(), reverse=True)[2:4]) / 2 for row in rows])[:, None]
    torch.testing.assert_close(threshold(rows, torch.tensor(3)), middle)
    steep = 2.5 * (rows - middle)
    expected = 1 / (1 + (-steep).exp()) if form == "sigmoid" else (steep / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected)
    assert torch.equal((found > 0.5).double(), hard_code(rows, torch.tensor(3)))
    own, other = (torch.autograd.grad(code, rows, gradient)[0] for code in (found, expected))
    torch.testing.assert_close(own, other)
    assert own.sum(1).abs().max() < 1e-12 < own.abs().max(), "no code follows what moves all entries alike"


def test_soft_codes_become_hard():
    rows, count = normal(6, 20), torch.tensor(5)
    ordered = rows.sort(dim=1, descending=True).values
    gap = (ordered[:, 4] - ordered[:, 5]).min()
    code = hard_code(rows, count)
    assert (soft_code(rows, count, 14.01 / gap, "sigmoid") - code).abs().max() < 1e-3
    assert (soft_code(rows, count, 7 / gap, "sigmoid") - code).abs().max() > 1e-3
    torch.testing.assert_close(soft_code(rows, count, 6.01 / gap, "hard_sigmoid"), code, atol=0, rtol=0)


# scaling and schedules


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_additive_scaling_evens_out_use_by_as_much_as_its_strength_says(strength):
    """Normal drives of deviation 1 and slightly different means: near the target, use grows with the mean by the
    density at the threshold, and with scaling by 1 + strength * density / target times less."""
    stream, units, count = torch.Generator().manual_seed(0), 200, torch.tensor(10)
    means, target, usage, late = 0.1 * normal(units), 0.05, torch.full((units,), 0.05), torch.zeros(units)
    for step in range(300):
        rows = means + torch.randn(128, units, generator=stream)
        use = hard_code(scaled(rows, usage, torch.tensor(target), "additive", strength), count).mean(0)
        usage.lerp_(use, 0.05)
        late += use / 150 * (step >= 150)
    density = math.exp(-(1.645**2) / 2) / math.sqrt(2 * math.pi)  # 5 % of a normal variable lies above 1.645
    slope = ((late - target) @ means / means.square().sum()).item()
    assert slope == pytest.approx(density / (1 + strength * density / target), rel=0.05)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", ["off", "additive", "multiplicative"])
def test_scaling_has_a_say_in_who_wins_in_training_and_in_evaluation(form, training):
    """By the share of the step's k and the units' mean use, in the latent as in what the loss compares."""
    method = built("kwta", units=40, scaling=form, **({} if form == "off" else {"scaling_strength": 3.0}))
    images, norm, use = normal(5, 3, 16, 16), method.standardize, torch.linspace(0, 0.9, 40)
    norm.running_mean.copy_(0.1 * normal(40))
    norm.running_var.copy_(0.1 * normal(40, seed=1).square())
    even = method.train(training).latents(images)["code"]
    method.usage.copy_(use)
    method.count.fill_(8)
    latents = method.latents(images)
    rows = method.layer(latents["h"])
    mean, variance = (rows.mean(0), rows.var(0, unbiased=False)) if training else (norm.running_mean, norm.running_var)
    rows = (rows - mean) / (variance + 1e-5).sqrt()
    by_form = {"off": rows, "additive": rows + 3 * (1 - use / 0.2), "multiplicative": rows * (3 * (0.2 - use)).exp()}
    drive = method.drive(latents["h"])
    torch.testing.assert_close(drive, by_form[form], atol=1e-5, rtol=1e-4)
    assert torch.equal(latents["code"], hard_code(drive, method.final_count))
    assert torch.equal(latents["code"], even) == (form == "off")
    soft = soft_code(drive, method.count, method.training_hardness, "sigmoid")
    torch.testing.assert_close(method.project(latents)["training_code"], soft)


def test_a_step_moves_the_schedule_and_the_use_of_units():
    assert ramped(0, 0.3, 0.05, 0.5) == 0.3 and ramped(0.5, 0.3, 0.05, 0.5) == ramped(1, 0.3, 0.05, 0.5) == 0.05
    assert ramped(0.25, 0.4, 0.1, 0.5) == pytest.approx(0.2) and ramped(0, 1.0, 10.0, 0.0) == 10.0
    training = Training(built("kwta", units=40, ramp=1.0))
    method = training.method
    assert (method.count.item(), method.final_count.item()) == (12, 2)
    before = method.usage.clone()
    for _ in range(2):
        training.step()
    assert method.count.item() == math.ceil(0.3 * (1 / 6) ** 0.25 * 40)  # two steps of eight
    assert method.training_hardness.item() == pytest.approx(4 * 2.5**0.25)
    assert method.usage.mean().item() == pytest.approx(0.3, abs=0.02) and not torch.equal(method.usage, before)
    assert method.standardize.num_batches_tracked == 4, "each view once"
    method.after_step(7, 8)
    assert method.count == method.final_count and method.training_hardness.item() == 10


# the drive's units


def test_codes_of_two_images_begin_so_far_apart_that_the_margin_can_be_met():
    """Equal positives and unrelated negatives cost nothing; images of CIFAR-10 have a mean cosine of 0.44."""
    method, (images, _) = built("kwta", image_size=32), normalized(natural(64, 32))
    with torch.no_grad():
        between = cosines(method.embed_view(images)["training_code"])[~torch.eye(64, dtype=torch.bool)]
    assert method.training_hardness.item() == 4 and between.mean().item() < 1 - method.options.margin


# the method


@pytest.mark.parametrize("positives", ["views", "class"])
def test_the_main_latent_is_a_binary_code_in_training_and_in_evaluation(positives):
    method = built("kwta", units=100, positives=positives)
    for mode in (True, False):
        latents = method.train(mode).latents(normal(5, 3, 16, 16))
        assert list(latents) == ["code", "h"]
        assert is_binary(latents["code"]) and latents["code"].sum(1).tolist() == [5.0] * 5


@pytest.mark.parametrize("loss", ["triplet", "contrast", "positives"])
def test_the_views_of_an_image_belong_together_or_with_labels_images_of_a_class(loss):
    random = {"triplets": "random"} if loss == "triplet" else {}
    by_view, by_class = (built("kwta", positives=what, loss=loss, **random) for what in ("views", "class"))
    first, codes = torch.eye(8)[:4], torch.eye(8)[[0, 1, 0, 1, 1]]
    own, _ = by_view.loss({"training_code_a": first, "training_code_b": first})
    other, parts = by_view.loss({"training_code_a": first, "training_code_b": first.roll(1, 0)})
    right, _ = by_class.loss({"training_code_a": codes, "labels": torch.tensor([4, 2, 4, 2, 2])})
    wrong, _ = by_class.loss({"training_code_a": codes, "labels": torch.tensor([4, 4, 2, 2, 2])})
    assert own.item() == right.item() == 0 < wrong.item() and other.item() > 0.4 and list(parts) == [loss]
    assert (by_view.views, by_view.needs, by_class.views, by_class.needs) == (2, (), 1, ("labels",))


@pytest.mark.parametrize(("encoder", "width"), [("sdr", 3 * 10 * 10), ("small", 512 * 4 * 4)])
def test_a_flat_latent_is_the_whole_map_and_finding_its_size_changes_no_weight(encoder, width):
    flat, pooled = (
        built("kwta", encoder=encoder, image_size=32, units=128, flatten=flatten) for flatten in (True, False)
    )
    assert flat.encoder.training and flat.layer.weight.shape == (128, width)
    for (name, one), other in zip(flat.encoder.state_dict().items(), pooled.encoder.state_dict().values()):
        assert torch.equal(one, other), name
    try_method(pretraining("kwta", encoder=encoder, image_size=32, flatten=True), images=64)  # on the meta device
    images = normal(2, 3, 32, 32)
    with torch.no_grad():
        features = flat.eval().encoder(images)
        assert torch.equal(flat.latents(images)["h"], features.reshape(2, width))
        assert torch.equal(pooled.eval().latents(images)["h"], features.mean((2, 3)))


@pytest.mark.parametrize("standardized", [False, True])
def test_positives_alone_collapse_on_raw_drives_and_not_on_standardized_ones(standardized):
    """What the source leaves open: k winners do not keep images apart, for all may have the same ones. A unit that
    always wins needs a mean, and a standardized drive has none."""
    method, (images, _) = built("kwta", units=128, loss="positives", scaling="off"), normalized(natural(128, 16))
    method.encoder = nn.Sequential(nn.Conv2d(3, 512, 4, stride=4), nn.ReLU())
    method.standardize = method.standardize if standardized else nn.Identity()
    training, entropies = Training(method, steps=40), []
    for step in range(41):
        if step in (0, 40):
            codes = method.latents(images)["code"]
            entropies.append((usage_entropy(codes), pattern_entropy(codes)))
        rows = images[torch.arange(32) + 32 * (step % 4)]
        training.step(*(rows + 0.5 * normal(*rows.shape, seed=2 * step + view) for view in range(2)))
    (use, patterns), (use_after, patterns_after) = entropies
    assert use > 0.3 and patterns > 6
    if standardized:
        assert use_after > 0.8 and patterns_after > 6
    else:
        assert (use_after, patterns_after) == pytest.approx((0, 0), abs=1e-3)
