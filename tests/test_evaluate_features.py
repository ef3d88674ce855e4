"""Features, nearest neighbors and t-SNE: what is computed, and that computing it changes nothing."""

import dataclasses
import math

import numpy
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from lib.evaluate import features as features_module
from lib.evaluate import knn as knn_module
from lib.evaluate.embeddings import embed_test
from lib.evaluate.features import evaluating, extract, extract_with_projections, latent_names, one_latent
from lib.evaluate.knn import knn_scores
from lib.evaluate.monitor import knn_monitor
from lib.evaluate.scores import accuracy
from lib.evaluate.tsne import choose_points, embed_2d, select
from lib.params.evaluation import Tsne
from lib.params.pretraining import Monitor
from lib.report.figures_tsne import draw_tsne, remarks
from lib.runtime.chunks import chunks
from lib.runtime.errors import UserError
from tests.evaluate_fakes import MACHINE, pretraining, same_state, state, tiny_data, tiny_method
from tests.examples import images


def latents_of(method, data, machine=MACHINE):
    return extract(method, data.test_images, data.mean, data.std, machine)


@pytest.mark.parametrize("batch", [7, 512])
def test_extract_gives_each_image_its_own_latent_whatever_the_batch(batch, monkeypatch):
    monkeypatch.setattr(features_module, "BATCH", batch)
    method, data = tiny_method(), tiny_data()
    found = latents_of(method, data)["h"]
    assert found.shape == (60, 8) and found.dtype == torch.float32 and not found.requires_grad
    for index, image in enumerate(data.test_images):
        pixels = (image.float() / 255 - data.mean[:, None, None]) / data.std[:, None, None]
        with torch.no_grad():
            single = method.latents(pixels[None])["h"][0]
        torch.testing.assert_close(found[index], single, rtol=1e-5, atol=1e-6)


def test_features_are_fp32_whatever_the_machine_trains_in():
    method, data = tiny_method(), tiny_data()
    bf16 = dataclasses.replace(MACHINE, precision="bf16")
    assert torch.equal(latents_of(method, data, bf16)["h"], latents_of(method, data)["h"])
    settings = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with evaluating(method):
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert settings == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_extract_leaves_state_and_modes_alone_and_says_that_pretraining_diverged():
    method, data = tiny_method().train(), tiny_data()
    method.projector.eval()
    before = state(method)
    found = extract_with_projections(method, data.test_images, data.mean, data.std, MACHINE)
    assert list(found["projections"]) == ["z_h"] and found["projections"]["z_h"].shape == (60, 4)
    assert method.images == 60  # one forward pass for both
    assert torch.equal(found["latents"]["h"], latents_of(method, data)["h"])
    assert same_state(method, before)
    assert method.training and method.encoder.training and not method.projector.training
    with torch.no_grad():
        method.encoder[0].weight[:] = math.nan
    with pytest.raises(UserError, match="latents 'h' of the trained network are not finite"):
        latents_of(method, data)


UPPER, LOWER = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
JOINED = torch.cat([UPPER, LOWER], 1)


@pytest.mark.parametrize(
    ("latents", "halves", "names"),
    [
        ({"h": UPPER}, False, ["h"]),
        ({"upper": UPPER, "lower": LOWER}, True, ["upper", "lower", "both", "mean"]),
        ({"last": JOINED, "first": UPPER}, False, ["last", "first", "both"]),
        ({"h": JOINED, "l": UPPER, "ab": LOWER}, False, ["h", "l", "ab"]),  # the main one joins the others already
        ({"h": JOINED + 1, "l": UPPER, "ab": LOWER}, False, ["h", "l", "ab", "all"]),
    ],
)
def test_latents_that_are_scored(latents, halves, names):
    assert list(latent_names(latents, halves)) == names
    for name in names:
        values = list(latents.values())
        expected = {"both": torch.cat(values, 1), "all": torch.cat(values, 1), "mean": values[0] * 2} | latents
        assert torch.equal(one_latent(latents, name), expected[name])


def test_embeddings_name_every_array():
    data = tiny_data()
    arrays = embed_test(tiny_method(("upper", "lower")), data, MACHINE)
    named = {"latents": ["upper", "lower"], "projections": ["z_upper", "z_lower"], "classes": data.classes}
    named |= {"indices": list(range(60)), "labels": data.test_labels.tolist()}
    assert {name: arrays[name].tolist() for name in named} == named
    assert arrays["upper"].shape == (60, 8) and arrays["upper"].dtype == "float32"
    assert arrays["z_lower"].shape == (60, 4)


@pytest.mark.parametrize("elements", [2**26, 90])  # all queries at once, or two at a time
def test_knn_equals_its_loop_form(elements, monkeypatch):
    monkeypatch.setattr(knn_module, "CHUNK", elements)
    taken = []
    monkeypatch.setattr(knn_module, "chunks", lambda *sizes: [taken.append(1) or part for part in chunks(*sizes)])
    draw = torch.Generator().manual_seed(1)
    bank, queries = torch.randn(40, 5, generator=draw), torch.randn(9, 5, generator=draw)
    labels = torch.randint(0, 4, (40,), generator=draw)
    scores = knn_scores(bank, labels, queries, 7, 0.1, 4)
    for row, query in enumerate(queries):
        near = sorted(
            ((float(query @ b / (query.norm() * b.norm())), int(c)) for b, c in zip(bank, labels)), reverse=True
        )[:7]
        expected = [sum(math.exp(s / 0.1) for s, c in near if c == label) for label in range(4)]
        scale = math.exp(near[0][0] / 0.1)
        assert scores[row].tolist() == pytest.approx([value / scale for value in expected], rel=1e-4)
    assert len(taken) == (1 if elements > 90 else 5)


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 100.0])
def test_knn_of_the_bank_itself_is_finite_and_right(temperature):
    bank, labels = torch.eye(6).repeat(2, 1), torch.arange(6).repeat(2)
    scores = knn_scores(bank, labels, 3 * bank, 2, temperature, 6)
    assert scores.isfinite().all()
    assert accuracy(scores, labels) == 100.0


def test_accuracy():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.35, 0.25]])
    labels = torch.tensor([1, 1, 2, 2])
    assert [accuracy(scores, labels, k) for k in (1, 2, 5)] == [50.0, 75.0, 100.0]


# The kNN accuracy shown while training: validation images among the other training images


class Pixels(nn.Module):
    """Latents are the pixels; a second latent is noise that must not be scored."""

    def latents(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixels": views.flatten(1), "noise": torch.ones(len(views), 2)}


def monitored(data, k: int) -> float:
    return knn_monitor(data, dataclasses.replace(pretraining(), monitor=Monitor(k=k)), MACHINE)(Pixels())


def test_a_validation_image_is_no_neighbor_of_its_own():
    data = images(count=64, classes=2)
    labels, pixels = data.train_labels.clone(), data.train_images.clone()
    for row in data.validation.tolist():  # the image after it looks the same and has the other label
        pixels[row] = pixels[row + 1]
        labels[row] = 1 - labels[row + 1]
    data = dataclasses.replace(data, train_images=pixels, train_labels=labels)
    assert monitored(data, k=1) == 0.0
    labels[data.validation] = labels[data.validation + 1]
    assert monitored(data, k=1) == 100.0


def test_a_small_set_of_images_lets_all_of_them_vote():
    data = images(count=64, classes=2)
    assert monitored(data, k=500) == monitored(data, k=len(data.fitting))


# t-SNE: the choice of points, the embedding, the picture


def blobs(count: int = 150, classes: int = 3) -> tuple[numpy.ndarray, numpy.ndarray]:
    draw = numpy.random.default_rng(0)
    labels = numpy.arange(count) % classes
    return (8 * draw.normal(size=(classes, 6))[labels] + draw.normal(size=(count, 6))).astype("float32"), labels


def test_points_are_the_same_for_all_and_fewer_are_a_subset():
    many, few = choose_points(1000, 300, 0), choose_points(1000, 100, 0)
    assert many[:100].tolist() == few.tolist() and len(set(many.tolist())) == 300
    assert choose_points(1000, 300, 1).tolist() != many.tolist()
    assert sorted(choose_points(50, 300, 0).tolist()) == list(range(50))


def test_select_takes_the_latents_alone():
    features, labels = blobs()
    names = {"latents": numpy.array(["upper"]), "projections": numpy.array(["z_upper"])}
    known = {"labels": labels, "indices": numpy.arange(150) + 7, "classes": numpy.array(["a", "b", "c"])}
    arrays = {"upper": features, "z_upper": features[:, :2], **known, **names}
    latents, beside = select(arrays, Tsne(points=40))
    rows = choose_points(150, 40, 0)
    assert list(latents) == ["upper"] and numpy.array_equal(latents["upper"], features[rows])
    assert beside["labels"].tolist() == labels[rows].tolist() and beside["indices"].tolist() == (rows + 7).tolist()
    with pytest.raises(UserError, match=r"tsne.perplexity is 40; allowed: below the number of points, here 40"):
        select(arrays, Tsne(points=40, perplexity=40))


def test_the_embedding_separates_blobs_and_repeats_exactly():
    features, labels = blobs()
    tsne = Tsne(perplexity=15, iterations=300)
    points = embed_2d(features, tsne)
    assert points.shape == (150, 2) and points.dtype == numpy.float32
    assert numpy.array_equal(points, embed_2d(features, tsne))
    distances = numpy.linalg.norm(points[:, None] - points[None], axis=2)
    numpy.fill_diagonal(distances, numpy.inf)
    assert (labels[distances.argmin(1)] == labels).mean() > 0.99


@pytest.mark.parametrize("value", [0.0, -3.7, 1e20])
def test_a_collapsed_latent_lies_at_the_origin_and_the_picture_says_so(value, tmp_path):
    latent = numpy.full((40, 6), value) * (1 + 2e-7 * (numpy.arange(40)[:, None] % 2))
    points = embed_2d(latent.astype("float32"), Tsne(perplexity=15, iterations=250))
    assert points.tolist() == [[0.0, 0.0]] * 40 and points.dtype == numpy.float32
    assert remarks(points, ["a"]).startswith(" - collapsed") and remarks(numpy.eye(2), ["a"]) == ""
    draw_tsne(tmp_path / "h.png", points, numpy.arange(40) % 3, ["a", "b", "c"], "a title")
    assert imread(tmp_path / "h.png").shape[0] == 975


@pytest.mark.parametrize("classes", [[r"$\frac", "5$ and 6$"], [f"class {i}" for i in range(120)]])
def test_a_picture_is_written_and_a_dollar_sign_is_a_dollar_sign(tmp_path, classes):
    features, labels = blobs(120, len(classes))
    path = tmp_path / "deep" / "h.png"
    draw_tsne(path, features[:, :2], labels, classes, r"a $\nothing$ title")
    pixels = imread(path)
    assert pixels.shape[0] == 975 and pixels.shape[1] > 930 and len(list(path.parent.iterdir())) == 1
