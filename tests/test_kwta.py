"""Sparse codes (docs/methods.md, 12): the kernel, scaling, schedules, the losses, and what keeps codes apart."""

import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, triplet_margin_with_distance_loss

from lib.evaluate.codes import is_binary, pattern_entropy, usage_entropy
from lib.methods import try_method
from lib.methods.kwta import (
    active_units,
    agreement,
    contrast,
    cosines,
    hard_code,
    ramped,
    scaled,
    soft_code,
    threshold,
    triplet,
)
from lib.runtime.errors import UserError
from tests.alone import Training, built, normal, small

# the kernel


@pytest.mark.parametrize(
    ("sparsity", "units", "count"),
    [(0.05, 128, 7), (0.05, 256, 13), (0.05, 512, 26), (0.05, 2048, 103), (0.3, 128, 39), (0.1, 30, 3), (0.3, 10, 3)],
)
def test_the_number_of_active_units_is_rounded_up(sparsity, units, count):
    assert active_units(sparsity, units) == count


@pytest.mark.parametrize("count", [1, 5, 39])
def test_exactly_k_units_win_and_they_are_the_largest(count):
    rows = normal(6, 40)
    for row, bits in zip(rows.tolist(), hard_code(rows, torch.tensor(count)).tolist()):
        limit = sorted(row, reverse=True)[count - 1]
        assert bits == [1.0 if value >= limit else 0.0 for value in row] and sum(bits) == count


def test_of_units_that_tie_the_first_ones_win():
    rows = torch.tensor([[1.0, 1, 1, 1, 1], [0, 2, 1, 1, 1], [3, 3, 3, 0, 3]])
    expected = [[1.0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert hard_code(rows, torch.tensor(2)).tolist() == expected


def test_only_the_order_of_a_row_matters():
    rows, count = normal(6, 40), torch.tensor(9)
    code = hard_code(rows, count)
    for other in (rows + normal(6, 1, seed=1), rows.exp(), 3 * rows + rows**3, code):  # the last: a code is its own
        assert torch.equal(hard_code(other, count), code)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert torch.equal(hard_code(rows[:, order], count), code[:, order])
    assert (code @ code.T).diagonal().tolist() == [9.0] * 6
    torch.testing.assert_close(cosines(code), code @ code.T / 9)  # the overlap over k


def test_gradients_pass_straight_through_a_hard_code():
    rows, gradient = normal(3, 10).requires_grad_(), normal(3, 10, seed=1)
    hard_code(rows, torch.tensor(4)).backward(gradient)
    assert torch.equal(rows.grad, gradient)


@pytest.mark.parametrize("form", ["sigmoid", "hard_sigmoid"])
def test_soft_codes_against_a_slow_twin_with_the_gradient_at_a_fixed_threshold(form):
    rows, gradient = normal(4, 9, dtype=torch.float64).requires_grad_(), normal(4, 9, seed=1, dtype=torch.float64)
    found = soft_code(rows, torch.tensor(3), torch.tensor(2.5, dtype=torch.float64), form)
    middle = torch.tensor([[sum(sorted(row, reverse=True)[2:4]) / 2] for row in rows.tolist()], dtype=torch.float64)
    torch.testing.assert_close(threshold(rows, torch.tensor(3)), middle)
    steep = 2.5 * (rows - middle)
    expected = 1 / (1 + (-steep).exp()) if form == "sigmoid" else (steep / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected)
    assert torch.equal((found > 0.5).double(), hard_code(rows, torch.tensor(3)))
    own, other = (torch.autograd.grad(code, rows, gradient)[0] for code in (found, expected))
    torch.testing.assert_close(own, other)


def test_soft_codes_become_hard():
    rows, count = normal(6, 20), torch.tensor(5)
    ordered = rows.sort(dim=1, descending=True).values
    gap = (ordered[:, 4] - ordered[:, 5]).min()
    code = hard_code(rows, count)
    assert (soft_code(rows, count, 14.01 / gap, "sigmoid") - code).abs().max() < 1e-3
    assert (soft_code(rows, count, 7 / gap, "sigmoid") - code).abs().max() > 1e-3
    torch.testing.assert_close(soft_code(rows, count, 6.01 / gap, "hard_sigmoid"), code, atol=0, rtol=0)


# scaling and schedules


def deviation_of_usage(form: str, mean: float = 0.0, steps: int = 300) -> tuple[float, float, int]:
    """Deviation of the units' use in the first steps and in the second half of all, and the number of dead ones then.

    Drives are Gaussian; the units' own means differ, about ``mean``.
    """
    stream, units, count = torch.Generator().manual_seed(0), 40, torch.tensor(4)
    means = 0.5 * normal(units, seed=3) + mean
    usage, use = torch.full((units,), 0.1), []
    for _ in range(steps):
        rows = torch.randn(32, units, generator=stream) + means
        use.append(hard_code(scaled(rows, usage, torch.tensor(0.1), form, 3.0), count).mean(0))
        usage.lerp_(use[-1], 0.05)
    first, last = (torch.stack(some).mean(0) for some in (use[:5], use[steps // 2 :]))
    return first.std().item(), last.std().item(), int((last < 0.01).sum())


@pytest.mark.parametrize("form", ["additive", "multiplicative"])
def test_scaling_is_nothing_at_the_target_and_evens_out_the_use_of_units_in_the_long_run(form):
    rows = normal(4, 10)
    torch.testing.assert_close(scaled(rows, torch.full((10,), 0.3), torch.tensor(0.3), form, 2.0), rows)
    (_, plain, _), (first, evened, dead) = deviation_of_usage("off"), deviation_of_usage(form)
    assert evened < 0.75 * plain and evened < 0.75 * first and dead == 0


def test_the_sources_factor_drives_a_rarely_used_negative_unit_further_down():
    rows, usage = torch.tensor([[-1.0, 1.0]]), torch.tensor([0.0, 0.0])
    factor, shift = (scaled(rows, usage, torch.tensor(0.3), form, 1.0)[0, 0] for form in ("multiplicative", "additive"))
    assert factor < -1 < shift
    first, last, dead = deviation_of_usage("multiplicative", mean=-3.0)
    assert last > 2 * first and dead > 10
    assert deviation_of_usage("additive", mean=-3.0)[2] == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", ["off", "additive", "multiplicative"])
def test_scaling_has_a_say_in_who_wins_in_training_and_in_evaluation(form, training):
    """By the share of the step's k and the units' mean use, in the latent as in what the loss compares."""
    method = built("kwta", units=40, scaling=form, **({} if form == "off" else {"scaling_strength": 3.0}))
    views = normal(5, 3, 16, 16)
    even = method.train(training).latents(views)["code"]
    method.usage.copy_(torch.linspace(0, 0.9, 40))
    method.count.fill_(8)
    latents = method.latents(views)
    rows, push = method.layer(latents["h"]), 3 * (0.2 - torch.linspace(0, 0.9, 40))
    expected = {"off": rows, "additive": rows + push, "multiplicative": rows * push.exp()}[form]
    torch.testing.assert_close(method.drive(latents["h"]), expected)
    assert torch.equal(latents["code"], hard_code(expected, method.final_count))
    assert torch.equal(latents["code"], even) == (form == "off")
    soft = soft_code(expected, method.count, method.training_hardness, "sigmoid")
    torch.testing.assert_close(method.project(latents)["training_code"], soft)


def test_ramps_at_their_corners():
    assert ramped(0, 0.3, 0.05, 0.5) == 0.3 and ramped(0.5, 0.3, 0.05, 0.5) == ramped(1, 0.3, 0.05, 0.5) == 0.05
    assert ramped(0.25, 0.4, 0.1, 0.5) == pytest.approx(0.2) and ramped(0, 1.0, 10.0, 0.0) == 10.0


def test_a_step_moves_the_schedule_and_the_use_of_units_and_a_state_keeps_them():
    training = Training(built("kwta", units=40, ramp=1.0))
    method = training.method
    assert (method.count.item(), method.final_count.item()) == (12, 2)
    before = method.usage.clone()
    for _ in range(2):
        training.step(normal(16, 3, 16, 16), normal(16, 3, 16, 16, seed=1))
    assert method.count.item() == math.ceil(0.3 * (1 / 6) ** 0.25 * 40)  # two steps of eight
    assert method.training_hardness.item() == pytest.approx(10**0.25)
    assert method.usage.mean().item() == pytest.approx(0.3, abs=0.02) and not torch.equal(method.usage, before)
    again = training.resumed(built("kwta", units=40, ramp=1.0)).method
    assert again.count == method.count and torch.equal(again.usage, method.usage)
    method.after_step(7, 8)
    assert method.count == method.final_count and method.training_hardness.item() == 10


# losses

CODES = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
GROUPS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("mining", ["random", "semi_hard"])
def test_the_triplet_loss_at_its_corners(mining):
    codes = CODES.clone().requires_grad_()
    far = triplet(codes, GROUPS, 0.5, mining)  # equal positives, disjoint negatives
    far.backward()
    assert far.item() == 0 and codes.grad.abs().max() == 0
    assert triplet(CODES, GROUPS, 1.5, mining).item() == pytest.approx(0.5, abs=1e-6)
    same = triplet(CODES[:1].expand(4, -1), GROUPS, 0.5, mining).item()
    assert same == pytest.approx(0.5 if mining == "random" else 0)  # no negative is less similar than the positive
    assert triplet(CODES, torch.arange(4), 0.5, mining).item() == 0  # nobody has a positive
    assert triplet(CODES, torch.zeros(4, dtype=torch.int64), 0.5, mining).item() == 0  # nobody has a negative


def test_random_triplets_against_a_slow_twin():
    """Each of four rows has one positive and two negatives, which are drawn evenly."""
    rows = normal(4, 5)
    cosine = [[float(cosine_similarity(a, b, dim=0)) for b in rows] for a in rows]
    values = [
        [max(0.0, cosine[i][n] - cosine[i][i ^ 1] + 0.5) for n in ((2, 3) if i < 2 else (0, 1))] for i in range(4)
    ]
    torch.manual_seed(0)
    found = [triplet(rows, GROUPS, 0.5, "random").item() for _ in range(400)]
    assert sum(found) / 400 == pytest.approx(sum(sum(pair) / 2 for pair in values) / 4, abs=0.03)
    assert min(found) == pytest.approx(sum(map(min, values)) / 4)
    assert max(found) == pytest.approx(sum(map(max, values)) / 4)


def test_the_semi_hard_negative_is_the_most_similar_one_within_the_margin():
    rows, losses, too_far = normal(12, 6), [], 0
    similarity = cosines(rows).tolist()
    for i in range(12):
        positive = similarity[i][(i + 6) % 12]
        below = [s for j, s in enumerate(similarity[i]) if j % 6 != i % 6 and s < positive]
        losses += [max(below) - positive + 0.1] if below and max(below) > positive - 0.1 else []
        too_far += bool(below) and max(below) <= positive - 0.1
    assert losses and too_far and len(losses) + too_far < 12
    found = triplet(rows, torch.arange(6).repeat(2), 0.1, "semi_hard")
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_losses_are_those_of_other_implementations():
    rows, metric = normal(10, 6), {"distance": CosineSimilarity(), "reducer": MeanReducer()}
    ours = triplet(rows[:3], torch.tensor([0, 0, 1]), 0.5, "random")  # two anchors without a choice
    anchors, positives, negatives = torch.tensor([[0, 1], [1, 0], [2, 2]])
    theirs = TripletMarginLoss(margin=0.5, **metric)(rows[:3], torch.zeros(3), (anchors, positives, negatives))
    torch.testing.assert_close(ours, theirs)
    distance = lambda a, b: 1 - cosine_similarity(a, b)  # noqa: E731
    torchs = triplet_margin_with_distance_loss(
        rows[anchors], rows[positives], rows[negatives], distance_function=distance, margin=0.5
    )
    torch.testing.assert_close(ours, torchs)
    groups = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 3, 1])
    theirs = ContrastiveLoss(pos_margin=0.9, neg_margin=0.5, **metric)(rows, groups)
    torch.testing.assert_close(contrast(rows, groups, 0.5), theirs)


def test_contrast_and_agreement_at_their_corners():
    same, crossed = CODES[:1].expand(4, -1), torch.tensor([0, 1, 0, 1])
    assert contrast(CODES, GROUPS, 0.5).item() == pytest.approx(0, abs=1e-6)
    assert contrast(same, GROUPS, 0.5).item() == pytest.approx(0.5, abs=1e-6)
    # pairs of a group are 1 apart, 0.9 too far; of the other 8 ordered pairs 4 are equal, 0.5 too near
    assert contrast(CODES, crossed, 0.5).item() == pytest.approx(1.15, abs=1e-6)
    assert agreement(same, GROUPS).item() == pytest.approx(0, abs=1e-6)
    assert agreement(CODES, crossed).item() == pytest.approx(1, abs=1e-6)


LOSSES = [
    lambda codes, groups: triplet(codes, groups, 0.5, "semi_hard"),
    lambda codes, groups: contrast(codes, groups, 0.5),
    agreement,
]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_has_the_gradient_of_its_value_and_is_fp32_whatever_the_autocast(loss):
    groups, rows = torch.arange(3).repeat(2), normal(6, 4, dtype=torch.float64).requires_grad_()
    assert loss(rows, groups) > 0 and torch.autograd.gradcheck(lambda codes: loss(codes, groups), (rows,))
    wide = normal(6, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        inside = loss(wide, groups)
    torch.manual_seed(0)
    assert inside.dtype == torch.float32 and torch.equal(inside, loss(wide, groups))


# the method


@pytest.mark.parametrize("positives", ["views", "class"])
def test_the_main_latent_is_a_binary_code_in_training_and_in_evaluation(positives):
    method = built("kwta", units=100, positives=positives)
    for mode in (True, False):
        latents = method.train(mode).latents(normal(5, 3, 16, 16))
        assert list(latents) == ["code", "h"]
        assert is_binary(latents["code"]) and latents["code"].sum(1).tolist() == [5.0] * 5


@pytest.mark.parametrize("loss", ["triplet", "contrast", "positives"])
def test_the_views_of_an_image_belong_together(loss):
    method = built("kwta", loss=loss, **({"triplets": "random"} if loss == "triplet" else {}))
    first = torch.eye(8)[:4]
    own, _ = method.loss({"training_code_a": first, "training_code_b": first})
    other, parts = method.loss({"training_code_a": first, "training_code_b": first.roll(1, 0)})
    assert own.item() == 0 and other.item() > 0.4 and list(parts) == [loss]
    assert (method.views, method.needs) == (2, ())


def test_with_labels_images_of_a_class_belong_together():
    method = built("kwta", positives="class", triplets="random")
    codes = torch.eye(8)[[0, 1, 0, 1, 1]]
    right, _ = method.loss({"training_code_a": codes, "labels": torch.tensor([4, 2, 4, 2, 2])})
    wrong, _ = method.loss({"training_code_a": codes, "labels": torch.tensor([4, 4, 2, 2, 2])})
    assert right.item() == 0 < wrong.item()
    assert (method.views, method.needs) == (1, ("labels",))


@pytest.mark.parametrize(("encoder", "width"), [("sdr", 3 * 10 * 10), ("small", 512 * 4 * 4)])
def test_a_flat_latent_is_the_whole_map_and_finding_its_size_changes_no_weight(encoder, width):
    flat, pooled = (built("kwta", encoder=encoder, size=32, units=128, flatten=flatten) for flatten in (True, False))
    assert flat.encoder.training and flat.layer.weight.shape == (128, width)
    for (name, one), other in zip(flat.encoder.state_dict().items(), pooled.encoder.state_dict().values()):
        assert torch.equal(one, other), name
    try_method(small("kwta", encoder=encoder, size=32, flatten=True), images=64)  # on the meta device
    images = normal(2, 3, 32, 32)
    with torch.no_grad():
        features = flat.eval().encoder(images)
        assert torch.equal(flat.latents(images)["h"], features.reshape(2, width))
        assert torch.equal(pooled.eval().latents(images)["h"], features.mean((2, 3)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": 10, "sparsity": 0.95}, "variants.kwta.sparsity is 0.95, which makes all 10 units active; allowed"),
        ({"loss": "contrast", "triplets": "random"}, "triplets is random, which has no effect with loss contrast"),
        ({"loss": "positives", "margin": 0.4}, "variants.kwta.margin is 0.4, which has no effect with loss positives"),
        ({"scaling": "off", "scaling_strength": 2.0}, "scaling_strength is 2.0, which has no effect with scaling off"),
        ({"scaling": "off", "usage_rate": 0.5}, "usage_rate is 0.5, which has no effect with scaling off"),
        ({"training_code": "hard", "hardness": 5.0}, "hardness is 5.0, which has no effect with training_code hard"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        built("kwta", **options)


def codes_after(steps: int, **options) -> tuple[Tensor, Tensor]:
    """Codes of 128 random images before and after learning from two noisy views of them."""
    method, images = built("kwta", units=128, **options), normal(128, 3, 16, 16)
    method.encoder = nn.Sequential(nn.Conv2d(3, 512, 4, stride=4), nn.ReLU())
    training = Training(method, steps=steps)
    before = method.latents(images)["code"]
    for step in range(steps):
        rows = images[torch.arange(32) + 32 * (step % 4)]
        training.step(*(rows + 0.5 * normal(*rows.shape, seed=2 * step + view) for view in range(2)))
    return before, method.latents(images)["code"]


def test_positives_alone_collapse_and_triplets_do_not():
    """What the source leaves open: k winners do not keep images apart, for all may have the same ones."""
    before, alone = codes_after(80, loss="positives", scaling="off")
    _, apart = codes_after(80, loss="triplet", scaling="off")
    measures = [(round(usage_entropy(codes), 3), round(pattern_entropy(codes), 3)) for codes in (before, alone, apart)]
    assert measures[0][0] > 0.3 and measures[0][1] > 6, measures
    assert measures[1][0] < 0.05 and measures[1][1] < 1, measures
    assert measures[2][0] > 0.1 and measures[2][1] > 2, measures
