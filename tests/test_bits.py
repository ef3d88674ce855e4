"""Episode and concept bits against slow twins, closed forms and images of known similarity; the cues; the stage."""

import json
import math

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
from lib.evaluate.bits import (
    LatentMemory,
    best_temperature,
    fit_space,
    measure_latents,
    shrinkage_whitening,
    variance_shares,
)
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

PLAIN = ["episode_bits", "concept_bits"]
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


def toy_galleries(classes: int = 4, size: int = 16, seed: int = 0) -> Galleries:
    """Two galleries of ``size`` images for each class, image k of the test split at place k, look-alikes at random."""
    count, stream = 2 * classes * size, torch.Generator().manual_seed(seed)
    alike = [torch.rand(size, size, generator=stream).fill_diagonal_(2) for _ in range(2)]
    order = [each.argsort(1, descending=True)[:, 1:] for each in alike]
    return Galleries(
        images=torch.arange(count),
        labels=torch.arange(classes).repeat_interleave(2 * size),
        half=torch.arange(2).repeat_interleave(size).repeat(classes),
        blocks=[slice(start, start + size) for start in range(0, count, size)],
        look_alikes=[order[number % 2] for number in range(2 * classes)],
        near_duplicates={},
    )


def measured(store, store_labels, test, cued, galleries) -> LatentMemory:
    return measure_latents(store, store_labels, test, {"toy": [cued]}, galleries)


def clusters(galleries: Galleries, within: float = 1.0, noise: float = 0.4):
    """Latents of classes that differ in 12 units, of images in 12 others: store and labels, test, cues.

    Differences between images are ``within`` times as large as drawn; cues are off by ``noise``.
    """
    centers, count = 2 * normal(int(galleries.labels.max()) + 1, 12), len(galleries.labels)
    store_labels = torch.arange(40 * len(centers)) % len(centers)
    store = torch.cat([centers[store_labels], within * normal(len(store_labels), 12, seed=1)], 1)
    test = torch.cat([centers[galleries.labels], within * normal(count, 12, seed=2)], 1)
    return store, store_labels, test, test + noise * normal(count, 24, seed=3)


# --- slow twins


def twin(store, store_labels, test, cued, galleries, temperatures) -> dict[str, list]:
    """What the definitions say of each cue, one similarity at a time, in double precision; gains of one look-alike."""
    center = store.double().mean(0)

    def similarity(a, b):
        a, b = a.double() - center, b.double() - center
        return (a @ b / (a.norm() * b.norm())).item()

    found = {"episode": [], "concept": [], "recall": [], "gains": []}
    for block, order in zip(galleries.blocks, galleries.look_alikes):
        for k in range(block.start, block.stop):
            half = int(galleries.half[k])
            t = temperatures["episode"][half]
            near = [similarity(cued[k], test[j]) for j in range(block.start, block.stop)]
            own, others = near[k - block.start], [near[j] for j in order[k - block.start]]
            weights = [math.exp(each / t) for each in near]
            found["episode"].append(math.log2(len(weights)) + math.log2(math.exp(own / t) / sum(weights)))
            found["recall"].append(all(own > other for other in others[:20]))
            found["gains"].append([1 - math.log2(1 + math.exp((other - own) / t)) for other in others])
            t, label = temperatures["concept"][half], int(galleries.labels[k])
            stored = [math.exp(similarity(cued[k], each) / t) for each in store]
            right = sum(weight for weight, known in zip(stored, store_labels.tolist()) if known == label)
            share = store_labels.tolist().count(label) / len(store)
            found["concept"].append(math.log2(right / sum(stored)) - math.log2(share))
    return found


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_bits_recall_and_gains_against_a_slow_twin(scale):
    """Whatever the scale of latents, the order of what is stored, and how often each class is."""
    galleries = toy_galleries(2, 24)
    store, labels, test, cued = clusters(galleries, within=0.3, noise=0.6)
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(1))[:50]
    inputs = scale * store[rows], labels[rows], scale * test, scale * cued
    memory = measured(*inputs, galleries)
    expected = twin(*inputs, galleries, memory.readings["toy"].temperatures)
    bits, numbers = memory.bits("toy"), memory.numbers("toy")
    for question in ("episode", "concept"):
        assert bits[question].tolist() == pytest.approx(expected[question], abs=2e-3)
    recalled = numpy.mean(expected["recall"])
    assert numbers["recall21"] == pytest.approx(recalled, abs=1e-4) and 0.1 < recalled < 0.9
    gains = numpy.array(expected["gains"]).mean(0)
    ranks = {"1": gains[:1], "2-5": gains[1:5], "6-20": gains[5:20], "21-100": gains[20:]}
    assert numbers["gain_by_rank"] == pytest.approx({rank: each.mean() for rank, each in ranks.items()}, abs=1e-3)


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


def test_codes_with_closed_forms():
    """Constant: nothing. The class alone: all of the concept, as its shares have it. Exact cues: all of the episode."""
    galleries = toy_galleries(2, 32)
    labels = (torch.arange(100) >= 90).long()
    stored, code = one_hot(labels, 3).float() + 0.5, one_hot(galleries.labels, 3).float() + 0.5
    collapsed = measured(torch.ones(100, 6), labels, *torch.ones(2, 128, 6), galleries).numbers("toy")
    assert [collapsed[key] for key in PLAIN] == [0, 0] and set(collapsed["gain_by_rank"].values()) == {0}
    assert collapsed["recall21"] == pytest.approx(1 / 21, abs=1e-4)
    of_class = measured(stored, labels, code, code, galleries).numbers("toy")
    entropy = -(math.log2(0.9) + math.log2(0.1)) / 2
    assert [of_class[key] for key in PLAIN] == pytest.approx([0, entropy], abs=0.03)
    store, labels, test, _ = clusters(galleries)
    exact = measured(store, labels, test, test, galleries).numbers("toy")
    assert exact["episode_bits"] > 4.96 and exact["recall21"] == 1 and max(exact["temperatures"]["episode"]) < 0.1


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
    both = measure_latents(store, labels, test, {"toy": iter([cued, other])}, galleries)
    alone = measured(store, labels, test, cued, galleries)
    assert both.readings["toy"].temperatures == alone.readings["toy"].temperatures
    assert both.numbers("toy")["episode_bits"] < alone.numbers("toy")["episode_bits"]
    assert both.numbers("toy")["concept_bits"] == alone.numbers("toy")["concept_bits"]
    assert alone.readings["toy"].variance is None and both.readings["toy"].variance is not None


def test_some_images_may_be_asked_for_their_class_alone():
    galleries = toy_galleries(4, 16)
    store, labels, test, cued = clusters(galleries)
    memory = LatentMemory(store, labels, test, galleries)
    memory.read("toy", cued, 32)
    found, whole = memory.bits("toy")["concept"], measured(store, labels, test, cued, galleries).bits("toy")["concept"]
    asked = ~found.isnan()
    assert asked.sum() == 32 and torch.equal(found[asked], whole[asked])
    assert galleries.labels[asked].bincount().tolist() == [8] * 4 and galleries.half[asked].sum() == 16


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
    assert fit_space(flat, whitened=True)(flat).isfinite().all()
    assert fit_space(torch.ones(9, 3), True)(flat[:, :3]).isfinite().all()


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
    views = view_of(some_images(20), MEAN, STD)
    found = some_cues("rotation_15", images=some_images(20))
    turned = {sign: vision.rotate(views, sign * 15.0, InterpolationMode.BILINEAR) for sign in (-1, 1)}
    inner, ways = slice(8, 24), set()
    for place, view in enumerate(found):
        near = {sign: (view - each[place])[:, inner, inner].abs().max().item() for sign, each in turned.items()}
        assert min(near.values()) < 1e-3 < max(near.values())
        ways.add(min(near, key=near.get))
    assert ways == {-1, 1}


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


def test_noise_is_a_tenth_of_the_range_of_pixels_and_an_unknown_kind_an_error():
    images = some_images(40)
    noise = (some_cues("noise_0.1", images=images) - view_of(images, MEAN, STD)) * STD[:, None, None]
    assert noise.std().item() == pytest.approx(0.1, rel=0.01) and abs(noise.mean().item()) < 1e-3
    assert not torch.equal(noise[0], noise[1])
    with pytest.raises(ValueError, match="no kind of cue 'blur_2'"):
        some_cues("blur_2")


# --- the stage's one function


def evaluation(method=None, about=None, data=None, draws=2, **augmented):
    method, data = method or tiny_method(), data or tiny_data(150, 60)
    return measure_memory(method, about or tiny_about(), data, Augment(**augmented), Memory(draws=draws), CPU)


def test_metrics_record_and_arrays_of_one_latent(tmp_path):
    method = tiny_method()
    before = state(method)
    found = evaluation(method)
    assert same_state(method, before)
    assert method.images == 150 + 60 + 60 * (2 + len(UNSEEN) + 4)  # nothing hidden is no cue
    assert list(found.metrics) == [*PLAIN, *UNSEEN, "whitened", "z"]
    assert all(list(found.metrics[kind]) == PLAIN for kind in (*UNSEEN, "whitened", "z"))
    assert found.record["gallery"] == {"smallest": 10, "largest": 10} and found.record["main"] == "h"
    assert found.record["possible"] == {"episode_bits": 3.3219, "concept_bits": 1.585}
    latent = found.record["latents"]["h"]
    assert list(latent["cues"]) == [TRAINED, *UNSEEN, *(kind for kind in CURVE if kind not in UNSEEN)]
    assert list(latent["cues"][TRAINED]["gain_by_rank"]) == ["1", "2-5", "6-20"]
    assert set(latent["variance"]) == {"class", "image", "view"}
    assert latent["whitened"]["episode_bits"] != latent["cues"][TRAINED]["episode_bits"]
    assert [row["percent"] for row in latent["occlusion"]] == [0, 12.5, 25, 37.5, 50, 62.5, 75]
    assert latent["occlusion"][0]["episode_bits"] == pytest.approx(3.3219, abs=0.05)  # the image itself
    assert found.record == json.loads(json.dumps(found.record)) and list(found.record["projections"]) == ["z_h"]
    assert found.metrics == evaluation().metrics and "willshaw" not in latent
    write_memory(found, tmp_path / "metrics/memory/v.1.json", tmp_path / "data/memory/v.1")
    assert read_json(tmp_path / "metrics/memory/v.1.json") == found.metrics
    assert read_json(tmp_path / "data/memory/v.1.json") == found.record
    arrays = read_arrays(tmp_path / "data/memory/v.1.npz")
    bits = {f"{question}_{kind}" for question in ("episode", "concept") for kind in (TRAINED, *UNSEEN)}
    assert set(arrays) == {"images", "labels", "half", *bits}
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


@pytest.mark.parametrize(("count", "first", "cued"), [(6, PLAIN, 6), (9, PLAIN, 6), (132, [*PLAIN, "recall21"], 132)])
def test_galleries_of_one_image_have_no_episode_and_recall_among_21_needs_21(count, first, cued):
    found = evaluation(data=tiny_data(150, count), draws=1)
    assert list(found.metrics) == [*first, *UNSEEN, "whitened", "z"] and found.record["images"]["cued"] == cued
    assert (found.record["possible"]["episode_bits"] == found.metrics["episode_bits"] == 0) == (cued == 6)


def test_pixels_take_the_place_of_a_method():
    record = pixel_landmark(tiny_data(150, 60), Augment(), Memory(draws=1), CPU)
    assert record["cues"]["noise_0.1"]["episode_bits"] == pytest.approx(math.log2(10), abs=0.1)
    assert record["width"] == 192 and "whitened" in record
    assert pixels_8x8(some_images()).shape == (6, 192) and unit_pixels(some_images()).shape == (6, 3072)
