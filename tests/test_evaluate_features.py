"""Features and nearest neighbors: what is computed, and that computing it changes nothing."""

import dataclasses
import math

import pytest
import torch

from lib.evaluate import features as features_module
from lib.evaluate import knn as knn_module
from lib.evaluate.embeddings import embed_data
from lib.evaluate.features import evaluating, extract, extract_with_projections, latent_names, one_latent
from lib.evaluate.knn import knn_scores
from lib.evaluate.scores import accuracy
from lib.runtime.chunks import chunks
from lib.runtime.errors import UserError
from tests.examples import CPU as MACHINE
from tests.examples import same_state, state, tiny_data, tiny_method


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


def test_extract_leaves_state_and_modes_alone():
    method, data = tiny_method().train(), tiny_data()
    method.projector.eval()
    before = state(method)
    found = extract_with_projections(method, data.test_images, data.mean, data.std, MACHINE)
    assert list(found["projections"]) == ["z_h"] and found["projections"]["z_h"].shape == (60, 4)
    assert method.images == 60  # one forward pass for both
    assert torch.equal(found["latents"]["h"], latents_of(method, data)["h"])
    assert same_state(method, before)
    assert method.training and method.encoder.training and not method.projector.training
    with evaluating(method):
        assert not any(module.training for module in method.modules()) and not torch.is_grad_enabled()


def test_extract_says_that_pretraining_diverged():
    method, data = tiny_method(), tiny_data()
    method.encoder[0].weight[:] = math.nan
    with pytest.raises(UserError, match="latents 'h' of the trained network are not finite") as error:
        latents_of(method, data)
    assert "\n" not in str(error.value)


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
    arrays = embed_data(tiny_method(("upper", "lower")), data, MACHINE)
    names = {"latents": ["upper", "lower"], "projections": ["z_upper", "z_lower"], "classes": data.classes}
    images = {"labels": data.test_labels.tolist(), "indices": list(range(60))}
    images |= {"files": [f"test/{row:05}" for row in range(60)]}
    assert {name: arrays[name].tolist() for name in (*names, *images)} == names | images
    assert (
        arrays["upper"].shape == (60, 8) and arrays["upper"].dtype == "float32" and arrays["z_lower"].shape == (60, 4)
    )


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


def test_of_equal_neighbors_no_class_is_the_first():
    bank, labels = torch.ones(3000, 4), torch.arange(3).repeat_interleave(1000)
    scores = knn_scores(bank, labels, torch.ones(2, 4), 300, 0.1, 3)
    # 100 of each class are expected, with a standard deviation of 7.7
    assert (scores - 100).abs().max() < 35 and scores.sum(1).tolist() == [300, 300]


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
