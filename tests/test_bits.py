"""Episode and concept bits against slow twins and closed forms."""

import math

import numpy
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch.nn.functional import normalize, one_hot

from lib.evaluate.bits import LatentMemory, best_temperature, fit_space, shrinkage_whitening, variance_shares
from lib.evaluate.codes import k_winners
from tests.examples import normal
from tests.memory_toys import clusters, e_and_c, measured, toy_galleries

# --- slow twins


def twin(store, store_labels, test, cued, galleries, temperatures) -> tuple[list[float], list[float]]:
    """Bits of each cue as the definitions say it, one similarity at a time, in double precision."""
    center = store.double().mean(0)

    def similarity(a, b):
        a, b = a.double() - center, b.double() - center
        return (a @ b / (a.norm() * b.norm())).item()

    episodes, concepts = [], []
    for block in galleries.blocks:
        for k in range(block.start, block.stop):
            half = int(galleries.half[k])
            t = temperatures["episode"][half]
            weights = {j: math.exp(similarity(cued[k], test[j]) / t) for j in range(block.start, block.stop)}
            episodes.append(math.log2(len(weights)) + math.log2(weights[k] / sum(weights.values())))
            t, own = temperatures["concept"][half], int(galleries.labels[k])
            stored = [math.exp(similarity(cued[k], each) / t) for each in store]
            right = sum(weight for weight, label in zip(stored, store_labels.tolist()) if label == own)
            share = store_labels.tolist().count(own) / len(store)
            concepts.append(math.log2(right / sum(stored)) - math.log2(share))
    return episodes, concepts


def test_bits_against_a_slow_twin():
    galleries = toy_galleries(3, 5)
    inputs = clusters(galleries, noise=1.5)
    memory = measured(*inputs, galleries)
    episodes, concepts = twin(*inputs, galleries, memory.readings["toy"].temperatures)
    found = memory.bits("toy")
    assert found["episode"].tolist() == pytest.approx(episodes, abs=1e-3)
    assert found["concept"].tolist() == pytest.approx(concepts, abs=1e-3)


def test_recall_and_gains_against_slow_twins():
    galleries = toy_galleries(2, 30)
    inputs = clusters(galleries, within=0.3, noise=0.6)
    memory = measured(*inputs, galleries)
    space, hits, gains = fit_space(inputs[0]), [], {rank: [] for rank in ("1", "2-5", "6-20", "21-100")}
    test, cued = space(inputs[2]), space(inputs[3])
    for number, block in enumerate(galleries.blocks):
        t = memory.readings["toy"].temperatures["episode"][number % 2]
        for place in range(30):
            own = (cued[block][place] @ test[block][place]).item()
            others = [(cued[block][place] @ test[block][j]).item() for j in galleries.look_alikes[number][place]]
            hits.append(all(own > other for other in others[:20]))
            bits = [1 - math.log2(1 + math.exp((other - own) / t)) for other in others]
            for rank, part in zip(gains, (bits[:1], bits[1:5], bits[5:20], bits[20:])):
                gains[rank].append(sum(part) / len(part))
    numbers = memory.numbers("toy")
    assert numbers["recall21"] == pytest.approx(sum(hits) / len(hits), abs=1e-4) and 0.1 < numbers["recall21"] < 0.9
    expected = {rank: sum(values) / len(values) for rank, values in gains.items()}
    assert numbers["gain_by_rank"] == pytest.approx(expected, abs=1e-3)


def test_the_temperature_is_the_best_of_a_fine_grid():
    logits = normal(200, 30)
    own = torch.arange(200) % 30
    logits[torch.arange(200), own] += 2
    similarity = logits / 50

    def loss(t):
        return torch.nn.functional.cross_entropy(similarity.double() / t, own, reduction="sum").item()

    fine = min(loss(math.exp(point)) for point in numpy.linspace(math.log(1e-4), math.log(10), 2000))
    assert loss(best_temperature(loss)) == pytest.approx(fine, abs=0.2)  # of 200 cues
    assert best_temperature(lambda t: 1e4 * (math.log(t) - math.log(0.02)) ** 2) == pytest.approx(0.02, rel=0.04)
    assert best_temperature(lambda t: 1e4 * t) == pytest.approx(1e-4, rel=0.05)  # a nat for every e-fold
    assert best_temperature(lambda t: 0.0) == pytest.approx(10, rel=0.05)


def test_a_half_without_an_error_does_not_choose_a_temperature_that_one_error_ruins():
    galleries = toy_galleries(2, 32)
    store, labels, test, cued = clusters(galleries, noise=0.3)
    cued[galleries.blocks[1]][0] = test[galleries.blocks[1]][1]
    bits = measured(store, labels, test, cued, galleries).bits("toy")["episode"]
    assert (bits < 0).sum() <= 1 and bits.min() > -60  # and not thousands of bits


# --- what must come out


def test_noise_alone_scores_nothing():
    galleries = toy_galleries(4, 100)
    episode, concept = e_and_c(normal(1000, 16), torch.arange(1000) % 4, *normal(2, 800, 16, seed=5), galleries)
    assert abs(episode) < 0.02 and abs(concept) < 0.02


def test_noise_in_a_code_does_not_score_and_costs_episode_bits():
    galleries = toy_galleries(4, 64)
    store, labels, test, cued = clusters(galleries)
    clean = e_and_c(store, labels, test, cued, galleries)
    noisy = [
        torch.cat([each, 3 * normal(len(each), 4, seed=70 + place)], 1)
        for place, each in enumerate((store, test, cued))
    ]
    worse = e_and_c(noisy[0], labels, *noisy[1:], galleries)
    assert worse[0] < clean[0] - 0.3 and worse[1] <= clean[1]


def test_pure_class_codes_are_all_of_the_concept_and_nothing_of_the_episode():
    galleries = toy_galleries(4, 8)
    labels = torch.arange(80) % 4
    code = one_hot(galleries.labels, 5).float()
    assert e_and_c(one_hot(labels, 5).float() + 0.5, labels, code + 0.5, code + 0.5, galleries) == pytest.approx(
        (0, 2), abs=0.03
    )


def test_identical_codes_tell_nothing():
    galleries = toy_galleries(4, 30)
    same = torch.ones(240, 6)
    memory = measured(torch.ones(80, 6), torch.arange(80) % 4, same, same, galleries)
    numbers = memory.numbers("toy")
    assert (numbers["episode_bits"], numbers["concept_bits"]) == (0.0, 0.0)
    assert numbers["recall21"] == pytest.approx(1 / 21, abs=1e-4)
    assert set(numbers["gain_by_rank"].values()) == {0.0}


def test_distinct_codes_and_exact_cues_are_all_of_the_episode():
    galleries = toy_galleries(2, 32)
    store, labels, test, _ = clusters(galleries)
    memory = measured(store, labels, test, test, galleries)
    assert memory.numbers("toy")["episode_bits"] > 4.96 and memory.numbers("toy")["recall21"] == 1.0
    assert max(memory.readings["toy"].temperatures["episode"]) < 0.1


def test_rotation_scale_and_order_of_units_and_images_change_nothing():
    galleries = toy_galleries(3, 16)
    store, labels, test, cued = clusters(galleries)
    usual = e_and_c(store, labels, test, cued, galleries)
    turn = torch.linalg.qr(normal(24, 24, seed=9))[0]
    order, units = torch.randperm(len(store), generator=torch.Generator().manual_seed(1)), torch.arange(24).flip(0)
    for change in (lambda x: x @ turn, lambda x: 1000 * x, lambda x: x / 1000, lambda x: x[:, units], lambda x: x + 7):
        assert e_and_c(change(store), labels, change(test), change(cued), galleries) == pytest.approx(usual, abs=2e-3)
    assert e_and_c(store[order], labels[order], test, cued, galleries) == pytest.approx(usual, abs=2e-3)


def test_labels_that_mean_nothing_are_no_concept():
    galleries = toy_galleries(4, 32)
    store, labels, test, cued = clusters(galleries, stored=500)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))]
    assert e_and_c(store, labels, test, cued, galleries)[1] > 1.8
    assert abs(e_and_c(store, shuffled, test, cued, galleries)[1]) < 0.05


@pytest.mark.parametrize("concentration", [8.0, 60.0])
def test_angles_with_known_noise_have_their_mutual_information_and_temperature(concentration):
    """On a circle, with von Mises noise, softmax(cos / T) is the likelihood itself, at T = 1 / concentration."""
    galleries = toy_galleries(2, 300)
    draw = numpy.random.default_rng(0)
    angles = draw.uniform(0, 2 * math.pi, 1200)
    cued = angles + draw.vonmises(0, concentration, 1200)
    test, cued = (torch.from_numpy(numpy.stack([numpy.cos(a), numpy.sin(a)], 1)).float() for a in (angles, cued))
    store = torch.cat([test[:50], -test[:50]])
    memory = measured(store, torch.arange(100) % 2, test, cued, galleries)
    density = 2 * math.pi * torch.special.i0e(torch.tensor(concentration, dtype=torch.float64)).item()
    ratio = (torch.special.i1e(torch.tensor(concentration)) / torch.special.i0e(torch.tensor(concentration))).item()
    entropy = math.log(density) + concentration * (1 - ratio)
    expected = (math.log(2 * math.pi) - entropy) / math.log(2)
    assert memory.numbers("toy")["episode_bits"] == pytest.approx(expected, abs=0.1)
    assert memory.readings["toy"].temperatures["episode"] == pytest.approx([1 / concentration] * 2, rel=0.15)


def test_gaussian_latents_approach_their_mutual_information_from_below():
    width, found = 64, []
    deviation = (2 ** (2 * 4 / width) - 1) ** -0.5  # of the cue's noise: 4 bits in all
    for size in (8, 64, 512):
        galleries = toy_galleries(2, size)
        test = normal(4 * size, width, seed=1)
        cued = test + deviation * normal(4 * size, width, seed=2)
        found.append(e_and_c(normal(200, width, seed=3), torch.arange(200) % 2, test, cued, galleries)[0])
    assert found[0] < 2.6 < found[1] < found[2] < 4 and found[2] > 3.3


def test_smaller_differences_within_a_class_before_fixed_noise_cost_the_episode_alone():
    galleries = toy_galleries(4, 64)
    wide, narrow = (e_and_c(*clusters(galleries, within, 0.3), galleries) for within in (1.0, 0.3))
    assert narrow[0] < wide[0] - 1 and narrow[1] >= wide[1] - 0.02


def test_smaller_differences_alone_are_undone_by_the_temperature():
    """Class and image in units of their own, each of fixed length: the cosine is linear in the image's part."""
    galleries = toy_galleries(4, 64)
    store_labels, count = torch.arange(400) % 4, len(galleries.labels)
    store, test = normalize(normal(400, 6)), normalize(normal(count, 6, seed=1))
    store = normalize(store - store.mean(0))
    cued = normalize(test + 0.3 * normal(count, 6, seed=2))
    found = []
    for size in (1.0, 0.1):
        parts = ((store_labels, store), (galleries.labels, test), (galleries.labels, cued))
        store_, *rest = (torch.cat([one_hot(labels, 4) - 0.25, size * part], 1) for labels, part in parts)
        found.append(e_and_c(store_, store_labels, *rest, galleries)[0])
    assert found[0] == pytest.approx(found[1], abs=0.05) and found[0] > 2


def test_a_half_is_read_at_the_temperature_of_the_other():
    galleries = toy_galleries(4, 32)
    store, labels, test, cued = clusters(galleries, noise=1.5)
    own = galleries.half == 0
    changed = torch.where(own[:, None], cued + normal(*cued.shape, seed=8), cued)
    before, after = (measured(store, labels, test, each, galleries).readings["toy"] for each in (cued, changed))
    for question in ("episode", "concept"):
        first, second = zip(before.temperatures[question], after.temperatures[question])
        assert first[0] == first[1] and second[0] != second[1]


def test_draws_are_means_and_the_first_chooses_the_temperature():
    galleries = toy_galleries(3, 16)
    store, labels, test, cued = clusters(galleries)
    other = cued + normal(*cued.shape, seed=8)
    both = measured(store, labels, test, cued, galleries, further=[other])
    alone = measured(store, labels, test, cued, galleries)
    assert both.readings["toy"].temperatures == alone.readings["toy"].temperatures
    assert both.numbers("toy")["episode_bits"] < alone.numbers("toy")["episode_bits"]
    assert both.numbers("toy")["concept_bits"] == alone.numbers("toy")["concept_bits"]
    assert alone.readings["toy"].variance is None and both.readings["toy"].variance is not None


def test_classes_of_different_sizes_have_the_entropy_of_their_shares():
    """A memory that always names the frequent class tells nothing."""
    galleries = toy_galleries(2, 16)
    labels = (torch.arange(100) >= 90).long()
    same = torch.ones(64, 3)
    assert e_and_c(torch.ones(100, 3), labels, same, same, galleries) == (0.0, 0.0)
    code = one_hot(galleries.labels, 2).float()
    known = measured(one_hot(labels, 2).float(), labels, code, code, galleries).numbers("toy")["concept_bits"]
    assert known == pytest.approx(-(math.log2(0.9) + math.log2(0.1)) / 2, abs=0.02)


def test_some_images_may_be_asked_for_their_class_alone():
    galleries = toy_galleries(4, 16)
    store, labels, test, cued = clusters(galleries)
    memory = LatentMemory(store, labels, test, galleries)
    memory.read("toy", cued, 32)
    found, whole = memory.bits("toy")["concept"], measured(store, labels, test, cued, galleries).bits("toy")["concept"]
    asked = ~found.isnan()
    assert asked.sum() == 32 and torch.equal(found[asked], whole[asked])
    assert galleries.labels[asked].bincount().tolist() == [8] * 4 and galleries.half[asked].sum() == 16


# --- metric, shares of variance


def test_whitening_is_of_the_shrunk_covariance():
    latents = normal(60, 12) @ normal(12, 12, seed=1) + 3
    reference = LedoitWolf().fit(latents.double().numpy())
    center = latents.mean(0)
    whitening = shrinkage_whitening(latents - center).double()
    torch.testing.assert_close(whitening @ whitening, torch.from_numpy(reference.precision_), rtol=1e-3, atol=1e-4)
    space = fit_space(latents, whitened=True)
    torch.testing.assert_close(space(latents), normalize((latents - center) @ whitening.float()), rtol=1e-4, atol=1e-5)
    flat = torch.cat([latents, torch.ones(60, 1)], 1)
    assert (
        fit_space(flat, whitened=True)(flat).isfinite().all()
        and fit_space(torch.ones(9, 3), True)(flat[:, :3]).isfinite().all()
    )


def test_whitened_bits_do_not_depend_on_an_invertible_map():
    galleries = toy_galleries(3, 16)
    store, labels, test, cued = clusters(galleries, noise=1.5, stored=400)
    stretch = torch.logspace(-0.7, 0.7, 24).diag()
    plain, mapped = ([x @ m for x in (store, test, cued)] for m in (torch.eye(24), stretch))
    found = [e_and_c(x[0], labels, *x[1:], galleries, whitened=True) for x in (plain, mapped)]
    usual = [e_and_c(x[0], labels, *x[1:], galleries) for x in (plain, mapped)]
    assert max(abs(a - b) for a, b in zip(*found)) < max(abs(a - b) for a, b in zip(*usual)) / 3


def test_shares_of_variance_are_the_components_that_were_drawn():
    labels = torch.arange(4000) % 200
    class_, image = normal(200, 5)[labels], 0.5 * normal(4000, 5, seed=1)
    draws = [class_ + image + 2 * normal(4000, 5, seed=2 + number) for number in range(6)]
    shares = variance_shares(sum(draws), torch.stack(draws).square().sum().item(), 6, labels)
    assert sum(shares.values()) == pytest.approx(1, abs=2e-4)
    assert shares == pytest.approx({"class": 1 / 5.25, "image": 0.25 / 5.25, "view": 4 / 5.25}, abs=0.03)
    same = normalize(normal(3, 5))[torch.arange(12) % 3]
    shares = variance_shares(4 * same, 48, 4, torch.arange(12) % 3)
    assert shares == pytest.approx({"class": 1, "image": 0, "view": 0}, abs=1e-3)
    assert variance_shares(0 * same, 0, 4, torch.arange(12) % 3) == {"class": 0, "image": 0, "view": 0}  # collapsed


def test_codes_are_compared_by_the_units_that_they_share():
    codes = k_winners(torch.rand(40, 16, generator=torch.Generator().manual_seed(0)), 4)
    units = fit_space(codes)(codes)
    torch.testing.assert_close(units @ units.T, codes @ codes.T / 4)
