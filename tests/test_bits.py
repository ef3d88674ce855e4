"""Episode and concept bits against slow twins, closed forms and images of known similarity; the cues; the stage."""

import json
import math
from itertools import pairwise

import numpy
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch.nn.functional import normalize, one_hot
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from lib.evaluate import cues as cue_code
from lib.evaluate import galleries as gallery_code
from lib.evaluate import memory as memory_stage
from lib.evaluate.bits import LatentMemory, best_temperature, fit_space, shrinkage_whitening, variance_shares
from lib.evaluate.codes import k_winners
from lib.evaluate.cues import CURVE, TRAINED, UNSEEN, cues
from lib.evaluate.galleries import Galleries, look_alikes, make_galleries, near_duplicates, unit_pixels
from lib.evaluate.memory import measure_memory, pixel_landmark, pixels_8x8, write_memory
from lib.params.evaluation import Memory
from lib.params.pretraining import Augment
from lib.runtime.errors import UserError
from lib.runtime.files import read_arrays, read_json
from lib.runtime.seeds import generator
from lib.views.augment import augment, draw
from lib.views.augment import normalize as view_of
from tests.examples import CPU, TinyMethod, normal, same_state, state, tiny_about, tiny_data, tiny_method

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


def toy_galleries(classes: int = 4, size: int = 16, seed: int = 0) -> Galleries:
    """Two galleries of ``size`` images for each class, image k of the test split at place k, look-alikes at random."""
    count, stream = 2 * classes * size, torch.Generator().manual_seed(seed)
    order = [torch.rand(size, size, generator=stream).fill_diagonal_(2).argsort(1, descending=True)[:, 1:]]
    order += [torch.rand(size, size, generator=stream).fill_diagonal_(2).argsort(1, descending=True)[:, 1:]]
    return Galleries(
        images=torch.arange(count),
        labels=torch.arange(classes).repeat_interleave(2 * size),
        half=torch.arange(2).repeat_interleave(size).repeat(classes),
        blocks=[slice(start, start + size) for start in range(0, count, size)],
        look_alikes=[order[number % 2] for number in range(2 * classes)],
        near_duplicates={},
    )


def measured(store, store_labels, test, cued, galleries, further=(), kind="toy", **options) -> LatentMemory:
    memory = LatentMemory(store, store_labels, test, galleries, **options)
    for each in (cued, *further):
        memory.read(kind, each)
    return memory


def e_and_c(*inputs, **options) -> tuple[float, float]:
    numbers = measured(*inputs, **options).numbers("toy")
    return numbers["episode_bits"], numbers["concept_bits"]


def clusters(galleries: Galleries, within: float = 1.0, noise: float = 0.4, stored: int = 40, seed: int = 0):
    """Latents of classes that differ in some units, of images in others: store and labels, test, cues.

    Differences between images are ``within`` times as large as drawn; cues are off by ``noise``.
    """
    classes = int(galleries.labels.max()) + 1
    width = 12
    centers = 2 * normal(classes, width, seed=seed)
    store_labels = torch.arange(stored * classes) % classes
    store = torch.cat([centers[store_labels], within * normal(len(store_labels), width, seed=seed + 1)], 1)
    count = len(galleries.labels)
    test = torch.cat([centers[galleries.labels], within * normal(count, width, seed=seed + 2)], 1)
    return store, store_labels, test, test + noise * normal(count, 2 * width, seed=seed + 3)


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


# --- images of known similarity


def quadrants(count: int, seed: int):
    """Images of 16x16 noisy pixels whose four quadrants are each dark or bright, and these four bits."""
    stream = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (count, 4), generator=stream)
    bright = (60 + 130 * bits.view(count, 1, 2, 2)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = torch.randint(-50, 51, (count, 3, 16, 16), generator=stream)
    return (bright + noise).to(torch.uint8), bits


def code_of(views, kept: int):
    """The first ``kept`` factors as a latent reads them from pixels, and a unit that is the same for all."""
    means = torch.nn.functional.avg_pool2d(views, 8).mean(1).flatten(1)[:, :kept]  # [n, kept]
    return torch.cat([(means > 0).float(), torch.full((len(views), 1), 0.3)], 1)


def test_bits_rise_with_the_factors_that_a_code_keeps_and_only_with_them():
    """Of exact factors, e is how many images of the gallery they leave: counted, not computed."""
    (train, _), (images, bits) = quadrants(300, 1), quadrants(240, 2)
    train_labels, labels = torch.arange(300) % 3, torch.arange(240) % 3
    galleries = make_galleries(train, train_labels, images, labels)
    assert galleries.near_duplicates == {"test": 0, "train": 0} and len(galleries.images) == 240
    half = torch.full((3,), 0.49), torch.full((3,), 0.25)
    found = []
    for kept in range(5):
        noise = cues("noise_0.1", images, galleries.images, Augment(), *half)
        stored, asked = (code_of(view_of(each, *half), kept) for each in (train, images))
        cued = torch.cat([code_of(views, kept) for views in noise])
        memory = measured(stored, train_labels, asked, cued, galleries, kind="noise")
        same = []
        for block in galleries.blocks:
            rows = [tuple(row[:kept]) for row in bits[galleries.images[block]].tolist()]
            same += [math.log2(len(rows) / rows.count(row)) for row in rows]
        found.append(memory.numbers("noise")["episode_bits"])
        assert found[-1] == pytest.approx(sum(same) / len(same), abs=0.02)
        assert abs(memory.numbers("noise")["concept_bits"]) < 0.1  # which tell nothing of the class
    assert found[0] == 0 and all(more > less + 0.7 for less, more in pairwise(found))


def test_pixels_find_what_look_alikes_differ_in():
    (train, _), (images, _) = quadrants(120, 1), quadrants(120, 2)
    labels = torch.arange(120) % 2
    galleries = make_galleries(train, labels, images, labels)
    views = torch.cat(list(cues("noise_0.5", images, galleries.images, Augment(), MEAN, STD)))
    stored = [pixels_8x8(view_of(each, MEAN, STD)) for each in (train, images)]
    memory = measured(stored[0], labels, stored[1], pixels_8x8(views), galleries, kind="noise")
    numbers = memory.numbers("noise")
    assert numbers["episode_bits"] > 0.95 * math.log2(30) and numbers["recall21"] > 0.95
    gains = list(numbers["gain_by_rank"].values())
    assert gains[0] < gains[-1] <= 1  # those that look alike are the harder ones


# --- galleries


def test_near_duplicates_against_a_slow_twin(monkeypatch):
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 16, 16), generator=stream, dtype=torch.uint8)
    images[7] = images[3]
    images[12] = (images[3].float() * 0.7 + 20).to(torch.uint8)  # darker and flatter: the same picture
    images[15] = (images[4].float() * 0.5 + images[5].float() * 0.5).to(torch.uint8)
    others = torch.cat([images[9:10], torch.randint(0, 256, (5, 3, 16, 16), generator=stream, dtype=torch.uint8)])
    close = numpy.corrcoef(images.flatten(1).double().numpy()) > 0.99
    expected = [any(close[i, j] for j in range(i)) for i in range(20)]
    assert sum(expected) == 2
    for crowded in (64, -1):  # pair by pair, and all at once
        monkeypatch.setattr(gallery_code, "CROWDED", crowded)
        assert near_duplicates(images).tolist() == expected
        assert near_duplicates(images, others).nonzero().flatten().tolist() == [9]


def test_galleries_are_halves_of_classes_without_near_duplicates():
    data = tiny_data(150, 61)
    data.test_images[3] = data.test_images[0]  # of one class
    data.test_images[6] = data.train_images[5]
    galleries = make_galleries(data.train_images, data.train_labels, data.test_images, data.test_labels, most=8)
    assert galleries.near_duplicates == {"test": 1, "train": 1}
    assert [block.stop - block.start for block in galleries.blocks] == [8] * 6 and galleries.sizes.tolist() == [8] * 48
    assert not {3, 6} & set(galleries.images.tolist()) and len(set(galleries.images.tolist())) == 48
    for number, block in enumerate(galleries.blocks):
        assert set(galleries.half[block].tolist()) == {number % 2}
        assert galleries.labels[block].tolist() == data.test_labels[galleries.images[block]].tolist()
        assert set(galleries.labels[block].tolist()) == {number // 2}
        pixels = data.test_images[galleries.images[block]]
        assert torch.equal(galleries.look_alikes[number], look_alikes(pixels))
        nearest = numpy.corrcoef(pixels.flatten(1).double().numpy()) - 2 * numpy.eye(8)
        assert galleries.look_alikes[number][:, 0].tolist() == nearest.argmax(1).tolist()
    usual = make_galleries(data.train_images, data.train_labels, data.test_images, data.test_labels)
    assert usual.sizes.tolist() == [9] * 18 + [10] * 40


def test_a_class_with_one_image_has_no_gallery_and_none_at_all_is_refused():
    data = tiny_data(150, 60)
    labels = data.test_labels.clone()
    labels[labels == 2] = 1
    labels[0] = 2
    galleries = make_galleries(data.train_images, data.train_labels, data.test_images, labels)
    assert set(galleries.labels.tolist()) == {0, 1}
    with pytest.raises(UserError, match="^no class has two test images that differ"):
        make_galleries(data.train_images, data.train_labels, data.test_images[:3], torch.arange(3))
    two = make_galleries(data.train_images, data.train_labels, data.test_images[:6], torch.arange(6) % 3)
    assert two.sizes.tolist() == [1] * 6 and [tuple(each.shape) for each in two.look_alikes] == [(1, 0)] * 6


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


# --- cues


def some_images(count: int = 6, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def some_cues(kind, indices=None, images=None, number=0, config=Augment()):
    images = some_images() if images is None else images
    indices = torch.arange(len(images)) if indices is None else indices
    return torch.cat(list(cues(kind, images, indices, config, MEAN, STD, number)))


@pytest.mark.parametrize("kind", [TRAINED, *UNSEEN, *CURVE])
def test_a_cue_depends_on_image_kind_and_draw_alone(kind, monkeypatch):
    usual = some_cues(kind)
    torch.rand(3)
    assert usual.shape == (6, 3, 32, 32) and torch.equal(some_cues(kind), usual)
    monkeypatch.setattr(cue_code, "BATCH", 4)
    torch.testing.assert_close(some_cues(kind, torch.tensor([4, 1, 5, 0, 2])), usual[[4, 1, 5, 0, 2]])
    changed = not torch.equal(some_cues(kind, number=1), usual)
    assert changed or kind in ("occlusion_0", "rotation_15")  # six signs may be the same
    assert kind == TRAINED or torch.equal(some_cues(kind, config=Augment(flip=0.0)), usual)


def test_trained_cues_are_of_the_family_that_training_uses():
    images, config = some_images(), Augment(crop_scale_min=0.5)
    params = draw(config, generator(0, "cue trained", 2), 6, 32, 32)
    expected = augment(images, params, MEAN, STD)
    torch.testing.assert_close(some_cues(TRAINED, number=2, config=config), expected)
    squares = some_cues(TRAINED, number=2, config=Augment(crop_scale_min=0.5, crop_pixels=8))
    torch.testing.assert_close(squares, expected)


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("percent", [0, 12.5, 25, 37.5, 50, 62.5, 75])
def test_a_square_of_exactly_its_share_is_the_training_mean(percent, size):
    place = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    views = cue_code.occlude(torch.ones(50, 3, size, size), place, percent / 100)
    assert (1 - views).mean((1, 2, 3)).tolist() == pytest.approx([percent / 100] * 50, abs=1e-6)
    hidden = views[0, 0] < 1
    rows, columns = hidden.any(1).sum(), hidden.any(0).sum()
    assert rows == columns == math.ceil(size * (percent / 100) ** 0.5 - 1e-9) and hidden.sum() == rows * columns
    assert percent == 0 or (percent, size) == (75, 8) or len({tuple(v.flatten().tolist()) for v in views}) > 3


def test_a_rotation_is_torchvisions_within_the_image():
    views = view_of(some_images(), MEAN, STD)
    found = some_cues("rotation_15")
    turned = {sign: vision.rotate(views, sign * 15.0, InterpolationMode.BILINEAR) for sign in (-1, 1)}
    inner = slice(8, 24)
    signs = set()
    for place, view in enumerate(found):
        near = {sign: (view - all_[place])[:, inner, inner].abs().max().item() for sign, all_ in turned.items()}
        assert min(near.values()) < 1e-3 < max(near.values())
        signs.add(min(near, key=near.get))
    many = some_cues("rotation_15", images=some_images(40, 8))
    both = [
        torch.allclose(many, cue_code.rotate(view_of(some_images(40, 8), MEAN, STD), torch.full((40,), d)))
        for d in (-15.0, 15.0)
    ]
    assert signs and both == [False, False]  # some of forty turn each way


def test_a_shift_moves_by_four_pixels_and_mirrors_the_edge():
    views, found = view_of(some_images(40, 16), MEAN, STD), some_cues("shift_4", images=some_images(40, 16))
    directions = set()
    for view, moved in zip(views, found):
        padded = torch.nn.functional.pad(view[None], (4, 4, 4, 4), mode="reflect")[0]
        places = {(0, 4): (4, 0), (4, 0): (0, 4), (0, -4): (4, 8), (-4, 0): (8, 4)}
        fits = [way for way, (y, x) in places.items() if torch.equal(padded[:, y : y + 16, x : x + 16], moved)]
        assert len(fits) == 1
        directions.update(fits)
    assert len(directions) == 4


def test_noise_is_a_tenth_of_the_range_of_pixels():
    images = some_images(40)
    noise = (some_cues("noise_0.1", images=images) - view_of(images, MEAN, STD)) * STD[:, None, None]
    assert noise.std().item() == pytest.approx(0.1, rel=0.01) and abs(noise.mean().item()) < 1e-3
    assert not torch.equal(noise[0], noise[1])


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="no kind of cue 'blur_2'"):
        some_cues("blur_2")


# --- the stage's one function

PLAIN = ["episode_bits", "concept_bits"]


def evaluation(method=None, about=None, data=None, draws=2, **augmented):
    method, data = method or tiny_method(), data or tiny_data(150, 60)
    return measure_memory(method, about or tiny_about(), data, Augment(**augmented), Memory(draws=draws), CPU)


def test_metrics_record_and_arrays_of_one_latent(tmp_path):
    method = tiny_method()
    before = state(method)
    found = evaluation(method)
    assert same_state(method, before) and method.images == 150 + 60 + 60 * (
        2 + len(UNSEEN) + 4
    )  # nothing hidden is no cue
    assert list(found.metrics) == [*PLAIN, *UNSEEN, "whitened", "z"]
    assert all(list(found.metrics[kind]) == PLAIN for kind in (*UNSEEN, "whitened", "z"))
    assert found.record["gallery"] == {"smallest": 10, "largest": 10} and found.record["main"] == "h"
    assert found.record["possible"] == {"episode_bits": 3.3219, "concept_bits": 1.585}
    latent = found.record["latents"]["h"]
    assert list(latent["cues"]) == [TRAINED, *UNSEEN, *(kind for kind in CURVE if kind not in UNSEEN)]
    assert list(latent["cues"][TRAINED]["gain_by_rank"]) == ["1", "2-5", "6-20"] and set(latent["variance"]) == {
        "class", "image", "view",
    }  # fmt: skip
    assert [row["percent"] for row in latent["occlusion"]] == [0, 12.5, 25, 37.5, 50, 62.5, 75]
    assert latent["occlusion"][0]["episode_bits"] == pytest.approx(3.3219, abs=0.05)  # the image itself
    assert found.record == json.loads(json.dumps(found.record)) and list(found.record["projections"]) == ["z_h"]
    assert found.metrics == evaluation().metrics and "willshaw" not in latent
    write_memory(found, tmp_path / "metrics/memory/v.1.json", tmp_path / "data/memory/v.1")
    assert read_json(tmp_path / "metrics/memory/v.1.json") == found.metrics
    assert read_json(tmp_path / "data/memory/v.1.json") == found.record
    arrays = read_arrays(tmp_path / "data/memory/v.1.npz")
    kinds = (TRAINED, *UNSEEN)
    assert set(arrays) == {
        "images",
        "labels",
        "half",
        *(f"{q}_{kind}" for q in ("episode", "concept") for kind in kinds),
    }
    assert arrays["episode_shift_4"].dtype == "float32" and len(arrays["images"]) == 60
    assert arrays["concept_trained"].mean() == pytest.approx(found.metrics["concept_bits"], abs=1e-4)


def test_several_latents_and_a_single_draw():
    found = evaluation(tiny_method(("upper", "lower")), draws=1)
    assert list(found.record["latents"]) == ["upper", "lower", "both", "mean"]
    assert list(found.record["projections"]) == ["z_upper", "z_lower"]
    assert found.metrics["episode_bits"] == found.record["latents"]["upper"]["cues"][TRAINED]["episode_bits"]
    assert found.record["latents"]["both"]["width"] == 16 and "variance" not in found.record["latents"]["upper"]


def test_codes_have_a_willshaw_memory_and_no_whitened_control():
    class Codes(TinyMethod):
        def latents(self, images):
            h = super().latents(images)["h"]
            return {"code": k_winners(h, 3), "h": h}

        def project(self, latents):
            return {}

    found = evaluation(Codes().eval().requires_grad_(False))
    code = found.record["latents"]["code"]
    assert list(found.metrics) == [*PLAIN, *UNSEEN] and "whitened" not in code
    assert {row["codes"] for row in code["willshaw"]} == {"learned", "random"}
    assert "whitened" in found.record["latents"]["h"] and found.record["projections"] == {}


def test_a_variant_changes_no_cue(monkeypatch):
    """Neither its seed nor its own augmentation."""
    seen = []
    monkeypatch.setattr(memory_stage, "cues", lambda *given: seen.append(list(cues(*given))) or seen[-1])
    for seed in (0, 1):
        about = tiny_about(seed)
        about["pretraining"]["augment"]["flip"] = 0.5 * seed
        evaluation(tiny_method(seed=seed), about, draws=1)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(torch.equal(torch.cat(a), torch.cat(b)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("count", [6, 9])
def test_galleries_of_one_image_have_no_episode(count):
    found = evaluation(data=tiny_data(150, count), draws=1)
    assert found.record["possible"]["episode_bits"] == found.metrics["episode_bits"] == 0
    assert found.record["images"]["cued"] == 6 and "recall21" not in found.metrics


def test_recall_among_21_needs_21():
    found = evaluation(data=tiny_data(150, 132), draws=1)
    assert list(found.metrics)[:3] == [*PLAIN, "recall21"] and 0 <= found.metrics["recall21"] <= 1


def test_pixels_take_the_place_of_a_method():
    record = pixel_landmark(tiny_data(150, 60), Augment(), Memory(draws=1), CPU)
    assert record["cues"]["noise_0.1"]["episode_bits"] == pytest.approx(math.log2(10), abs=0.1)
    assert record["width"] == 192 and "whitened" in record
    assert pixels_8x8(some_images()).shape == (6, 192) and unit_pixels(some_images()).shape == (6, 3072)
