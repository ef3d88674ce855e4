"""Sparse codes (docs/methods.md, 12): the kernel, scaling, schedules, the losses, and what keeps codes apart."""

import dataclasses
import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss
from pytorch_metric_learning.reducers import MeanReducer
from torch import nn

from lib.core.trainer import Pretrainer
from lib.evaluate.codes import is_binary, pattern_entropy, unused, usage_entropy
from lib.losses.code_contrast import agreement, contrast, cosines
from lib.losses.triplet import hinge, semi_hard, triplet
from lib.methods import build_method
from lib.methods.parts.kwta import active_units, hard_code, ramped, scaled, soft_code, threshold
from lib.runtime.errors import UserError
from tests.examples import CPU, images, pretraining
from tests.sparse_collapse import codes_after


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def built(variant: str = "kwta", **options):
    torch.manual_seed(0)
    return build_method(dataclasses.replace(pretraining(variant), options=options))


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
    code = hard_code(rows, torch.tensor(count))
    for row, bits in zip(rows.tolist(), code.tolist()):
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


def test_the_threshold_is_in_the_middle():
    rows = normal(5, 12)
    for count in (1, 4, 11):
        expected = [sum(sorted(row, reverse=True)[count - 1 : count + 1]) / 2 for row in rows.tolist()]
        assert threshold(rows, torch.tensor(count))[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_gradients_pass_straight_through_a_hard_code():
    rows, slope = normal(3, 10).requires_grad_(), normal(3, 10, seed=1)
    hard_code(rows, torch.tensor(4)).backward(slope)
    assert torch.equal(rows.grad, slope)


@pytest.mark.parametrize("form", ["sigmoid", "hard_sigmoid"])
def test_soft_codes_against_a_slow_twin(form):
    rows, count, hardness = normal(4, 9), torch.tensor(3), torch.tensor(2.5)
    expected = []
    for row in rows.tolist():
        middle = sum(sorted(row, reverse=True)[2:4]) / 2
        steep = [2.5 * (value - middle) for value in row]
        expected.append([1 / (1 + math.exp(-x)) if form == "sigmoid" else min(1, max(0, x / 6 + 0.5)) for x in steep])
    found = soft_code(rows, count, hardness, form)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert torch.equal((found > 0.5).float(), hard_code(rows, count))


@pytest.mark.parametrize("form", ["sigmoid", "hard_sigmoid"])
def test_soft_codes_have_the_gradient_at_a_fixed_threshold(form):
    rows = normal(3, 7, dtype=torch.float64).requires_grad_()
    count, hardness = torch.tensor(2), torch.tensor(1.7, dtype=torch.float64)
    middle = threshold(rows.detach(), count)
    squash = torch.sigmoid if form == "sigmoid" else (lambda x: (x / 6 + 0.5).clamp(0, 1))
    slope = normal(3, 7, seed=1, dtype=torch.float64)
    expected = torch.autograd.grad(squash(hardness * (rows - middle)), rows, slope)[0]
    torch.testing.assert_close(torch.autograd.grad(soft_code(rows, count, hardness, form), rows, slope)[0], expected)


def test_soft_codes_become_hard():
    rows, count = normal(6, 20), torch.tensor(5)
    ordered = rows.sort(dim=1, descending=True).values
    gap = (ordered[:, 4] - ordered[:, 5]).min()
    code = hard_code(rows, count)
    assert (soft_code(rows, count, 14.01 / gap, "sigmoid") - code).abs().max() < 1e-3
    assert (soft_code(rows, count, 7 / gap, "sigmoid") - code).abs().max() > 1e-3
    torch.testing.assert_close(soft_code(rows, count, 6.01 / gap, "hard_sigmoid"), code, atol=0, rtol=0)


# scaling and schedules


@pytest.mark.parametrize("form", ["additive", "multiplicative"])
def test_scaling_is_nothing_at_the_target(form):
    rows = normal(4, 10)
    torch.testing.assert_close(scaled(rows, torch.full((10,), 0.3), torch.tensor(0.3), form, 2.0), rows)
    assert scaled(rows, torch.rand(10), torch.tensor(0.3), "off", 2.0) is rows


def spread_of_usage(form: str, mean: float = 0.0, steps: int = 300) -> tuple[float, float, int]:
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
def test_scaling_evens_out_the_use_of_units_in_the_long_run(form):
    (_, plain, _), (first, evened, dead) = spread_of_usage("off"), spread_of_usage(form)
    assert evened < 0.75 * plain and evened < 0.75 * first and dead == 0


def test_the_sources_factor_drives_a_rarely_used_negative_unit_further_down():
    rows, usage = torch.tensor([[-1.0, 1.0]]), torch.tensor([0.0, 0.0])
    factor, shift = (scaled(rows, usage, torch.tensor(0.3), form, 1.0)[0, 0] for form in ("multiplicative", "additive"))
    assert factor < -1 < shift
    first, last, dead = spread_of_usage("multiplicative", mean=-3.0)
    assert last > 2 * first and dead > 10
    assert spread_of_usage("additive", mean=-3.0)[2] == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", ["off", "additive", "multiplicative"])
def test_scaling_has_a_say_in_who_wins_in_training_and_in_evaluation(form, training):
    """By the share of the step's k and the units' mean use, in the latent as in what the loss compares."""
    method = built(units=40, scaling=form, **({} if form == "off" else {"scaling_strength": 3.0})).train(training)
    views = normal(5, 3, 16, 16)
    even = method.latents(views)["code"]
    method.usage.copy_(torch.linspace(0, 0.9, 40))
    method.count.fill_(8)
    found = method.latents(views)
    rows, push = method.layer(found["h"]), 3 * (0.2 - torch.linspace(0, 0.9, 40))
    expected = {"off": rows, "additive": rows + push, "multiplicative": rows * push.exp()}[form]
    torch.testing.assert_close(method.drive(found["h"]), expected)
    assert torch.equal(method.drive(found["h"]), scaled(rows, method.usage, method.count / 40, form, 3.0))
    assert torch.equal(found["code"], hard_code(expected, method.final_count))
    assert torch.equal(found["code"], even) == (form == "off")
    torch.testing.assert_close(
        method.project(found)["training_code"], soft_code(expected, method.count, method.training_hardness, "sigmoid")
    )


def test_ramps_at_their_corners():
    assert ramped(0, 0.3, 0.05, 0.5) == 0.3 and ramped(0.5, 0.3, 0.05, 0.5) == ramped(1, 0.3, 0.05, 0.5) == 0.05
    assert ramped(0.25, 0.4, 0.1, 0.5) == pytest.approx(0.2) and ramped(0, 1.0, 10.0, 0.0) == 10.0


def test_a_step_moves_the_schedule_and_the_use_of_units_and_a_state_keeps_them():
    params = pretraining("kwta")
    run = Pretrainer(built(units=40, ramp=1.0), images(), params, CPU)
    assert (run.method.count.item(), run.method.final_count.item()) == (12, 2)
    before, steps = run.method.usage.clone(), run.steps
    for step in range(2):
        run.step(0, step, run.order(0)[step])
    progress = 2 / steps
    assert run.method.count.item() == math.ceil(0.3 * (1 / 6) ** progress * 40)
    assert run.method.training_hardness.item() == pytest.approx(10**progress)
    assert run.method.usage.mean().item() == pytest.approx(0.3, abs=0.02) and not torch.equal(run.method.usage, before)
    again = built(units=40, ramp=1.0)
    again.load_state_dict(run.method.state_dict())
    assert again.count == run.method.count and torch.equal(again.usage, run.method.usage)
    run.method.after_step(steps - 1, steps)
    assert run.method.count == run.method.final_count and run.method.training_hardness.item() == 10


# losses

CODES = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
GROUPS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("mining", ["random", "semi_hard"])
def test_the_triplet_loss_at_its_corners(mining):
    assert triplet(CODES, GROUPS, 0.5, mining).item() == 0  # equal positives, disjoint negatives
    assert triplet(CODES, GROUPS, 1.5, mining).item() == pytest.approx(0.5, abs=1e-6)
    same = triplet(CODES[:1].expand(4, -1), GROUPS, 0.5, mining).item()
    assert same == pytest.approx(0.5 if mining == "random" else 0)  # no negative is less similar than the positive
    assert triplet(CODES, torch.arange(4), 0.5, mining).item() == 0  # nobody has a positive
    assert triplet(CODES, torch.zeros(4, dtype=torch.int64), 0.5, mining).item() == 0  # nobody has a negative


def test_random_triplets_against_a_slow_twin():
    """Groups of two and one row of another: every draw has the same choice, or a mean over few."""
    rows = normal(4, 5)
    cosine = [[float(nn.functional.cosine_similarity(a, b, dim=0)) for b in rows] for a in rows]
    values = {
        i: [max(0.0, cosine[i][n] - cosine[i][i ^ 1] + 0.5) for n in ((2, 3) if i < 2 else (0, 1))] for i in range(4)
    }
    torch.manual_seed(0)
    found = [triplet(rows, GROUPS, 0.5, "random").item() for _ in range(400)]
    assert sum(found) / 400 == pytest.approx(sum(sum(pair) / 2 for pair in values.values()) / 4, abs=0.03)
    assert min(found) >= sum(min(pair) for pair in values.values()) / 4 - 1e-6
    assert max(found) <= sum(max(pair) for pair in values.values()) / 4 + 1e-6


def test_semi_hard_negatives_of_a_known_matrix():
    similarity = torch.tensor([[1.0, 0.6, 0.7, 0.5, 0.2, 0.0]])
    others = torch.tensor([[0, 0, 1, 1, 1, 1]]).bool()
    assert semi_hard(similarity, torch.tensor([0.6]), others, 0.5).int().tolist() == [[0, 0, 0, 1, 1, 0]]


def test_the_semi_hard_negative_is_the_most_similar_one():
    rows = normal(12, 6).requires_grad_()
    groups = torch.arange(6).repeat(2)
    similarity, losses = cosines(rows.detach()).tolist(), []
    for i in range(12):
        positive = similarity[i][(i + 6) % 12]
        band = [s for j, s in enumerate(similarity[i]) if j % 6 != i % 6 and positive - 0.5 < s < positive]
        losses += [max(band) - positive + 0.5] if band else []
    assert 0 < len(losses) < 12
    found = triplet(rows, groups, 0.5, "semi_hard")
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_triplet_that_is_far_enough_has_no_gradient():
    codes = CODES.clone().requires_grad_()
    triplet(codes, GROUPS, 0.5, "random").backward()
    assert codes.grad.abs().max() == 0


def test_hinges_are_those_of_other_implementations():
    rows = normal(9, 6)
    anchors, positives, negatives = torch.arange(3), torch.arange(3, 6), torch.arange(6, 9)
    similarity = cosines(rows)
    ours = hinge(similarity[anchors, positives], similarity[anchors, negatives], 0.5).mean()
    theirs = TripletMarginLoss(margin=0.5, distance=CosineSimilarity(), reducer=MeanReducer())
    labels = torch.zeros(9, dtype=torch.int64)
    torch.testing.assert_close(ours, theirs(rows, labels, (anchors, positives, negatives)))
    distance = lambda a, b: 1 - nn.functional.cosine_similarity(a, b)  # noqa: E731
    torch.testing.assert_close(
        ours,
        nn.functional.triplet_margin_with_distance_loss(
            rows[:3], rows[3:6], rows[6:], distance_function=distance, margin=0.5
        ),
    )


def test_contrast_is_another_implementations():
    rows, groups = normal(10, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 3, 1])
    theirs = ContrastiveLoss(pos_margin=0.9, neg_margin=0.5, distance=CosineSimilarity(), reducer=MeanReducer())
    torch.testing.assert_close(contrast(rows, groups, 0.5), theirs(rows, groups))


def test_contrast_and_agreement_at_their_corners():
    assert contrast(CODES, GROUPS, 0.5).item() == pytest.approx(0, abs=1e-6)
    assert contrast(CODES[:1].expand(4, -1), GROUPS, 0.5).item() == pytest.approx(0.5, abs=1e-6)
    assert contrast(CODES, torch.tensor([0, 1, 0, 1]), 0.5).item() == pytest.approx(1.15, abs=1e-6)
    # the last: pairs of a group are 1 apart, 0.9 too far; of the other 8 ordered pairs 4 are equal, 0.5 too near
    assert agreement(CODES[:1].expand(4, -1), GROUPS).item() == pytest.approx(0, abs=1e-6)
    assert agreement(CODES, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(1, abs=1e-6)


def test_gradients():
    rows = normal(6, 4, dtype=torch.float64).requires_grad_()
    groups = torch.arange(3).repeat(2)
    for error in (contrast, lambda x, g, m: triplet(x, g, m, "semi_hard")):
        assert error(rows, groups, 0.5) > 0 and torch.autograd.gradcheck(lambda x: error(x, groups, 0.5), (rows,))
    assert torch.autograd.gradcheck(lambda x: agreement(x, groups), (rows,))


# the methods


@pytest.mark.parametrize("variant", ["kwta", "kwta_supervised"])
def test_the_main_latent_is_a_binary_code_in_training_and_in_evaluation(variant):
    method = built(variant, units=100)
    views = normal(5, 3, 16, 16)
    for mode in (True, False):
        latents = method.train(mode).latents(views)
        assert list(latents) == ["code", "h"]
        assert is_binary(latents["code"]) and latents["code"].sum(1).tolist() == [5.0] * 5


@pytest.mark.parametrize("loss", ["triplet", "contrast", "positives"])
def test_the_views_of_an_image_belong_together(loss):
    method = built(loss=loss, **({"triplets": "random"} if loss == "triplet" else {}))
    first = torch.eye(8)[:4]
    own, _ = method.loss({"training_code_a": first, "training_code_b": first})
    other, parts = method.loss({"training_code_a": first, "training_code_b": first.roll(1, 0)})
    assert own.item() == 0 and other.item() > 0.4 and list(parts) == [loss]


def test_the_supervised_method_has_images_of_a_class_together():
    method = built("kwta_supervised", triplets="random")
    codes = torch.eye(8)[[0, 1, 0, 1, 1]]
    right, _ = method.loss({"training_code_a": codes, "labels": torch.tensor([4, 2, 4, 2, 2])})
    wrong, _ = method.loss({"training_code_a": codes, "labels": torch.tensor([4, 4, 2, 2, 2])})
    assert right.item() == 0 < wrong.item()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": 10, "sparsity": 0.95}, "variants.kwta.sparsity is 0.95, which makes all 10 units active; allowed"),
        (
            {"loss": "contrast", "triplets": "random"},
            "variants.kwta.triplets is random, which has no effect with loss con",
        ),
        ({"loss": "positives", "margin": 0.4}, "variants.kwta.margin is 0.4, which has no effect with loss positives"),
        ({"scaling": "off", "scaling_strength": 2.0}, "scaling_strength is 2.0, which has no effect with scaling off"),
        ({"scaling": "off", "usage_rate": 0.5}, "usage_rate is 0.5, which has no effect with scaling off"),
        ({"training_code": "hard", "hardness": 5.0}, "hardness is 5.0, which has no effect with training_code hard"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        built(**options)


def test_measures_of_codes_at_their_corners():
    even, same = torch.eye(8), torch.eye(8)[:1].expand(8, -1)
    assert usage_entropy(even) == pytest.approx(1) and usage_entropy(same) == 0
    assert pattern_entropy(even) == pytest.approx(3) and pattern_entropy(same) == 0
    assert unused(even) == 0 and unused(same) == 7 / 8
    assert is_binary(even) and not is_binary(even / 2) and not is_binary(torch.ones(2, 3))
    assert not is_binary(torch.tensor([[1.0, 0, 0], [1, 1, 0]]))


def small_encoder() -> nn.Module:
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Conv2d(3, 512, 4, stride=4), nn.ReLU())
    encoder.width = 512
    return encoder


def test_positives_alone_collapse_and_triplets_do_not():
    """What the source leaves open: k winners do not keep images apart, for all may have the same ones."""
    before, alone = codes_after(20, small_encoder(), loss="positives", scaling="off")
    _, apart = codes_after(20, small_encoder(), loss="triplet", scaling="off")
    assert before["usage entropy"] > 0.3 and before["pattern entropy"] > 6
    assert alone["usage entropy"] < 0.05 and alone["pattern entropy"] < 1, alone
    assert apart["usage entropy"] > 0.1 and apart["pattern entropy"] > 2, apart
