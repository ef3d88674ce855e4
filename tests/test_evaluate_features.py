"""Features and nearest neighbours: what is computed, and that computing it changes nothing."""

import math

import pytest
import torch

from lib.evaluate.embeddings import embed_test
from lib.evaluate.features import evaluating, extract, extract_with_projections, latent_names, one_latent
from lib.evaluate.knn import knn_scores
from lib.evaluate.scores import accuracy
from lib.runtime.chunks import chunks
from lib.runtime.errors import UserError
from tests.evaluate_fakes import MACHINE, same_state, state, tiny_data, tiny_method


def test_extract_gives_each_image_its_own_latent_whatever_the_batch():
    method, data = tiny_method(), tiny_data()
    whole = extract(method, data.test_images, data.mean, data.std, MACHINE)["h"]
    parts = extract(method, data.test_images, data.mean, data.std, MACHINE, batch=7)["h"]
    pixels = (data.test_images[5:6].float() / 255 - data.mean[:, None, None]) / data.std[:, None, None]
    with torch.no_grad():
        single = method.latents(pixels)["h"][0]
    assert whole.shape == (60, 8) and whole.dtype == torch.float32 and not whole.requires_grad
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole[5], single, rtol=1e-5, atol=1e-6)


def test_extract_leaves_state_and_modes_alone():
    method, data = tiny_method().train(), tiny_data()
    method.projector.eval()
    before = state(method)
    found = extract_with_projections(method, data.test_images, data.mean, data.std, MACHINE)
    assert list(found["projections"]) == ["z_h"] and found["projections"]["z_h"].shape == (60, 4)
    assert method.images == 60  # one forward pass for both
    assert torch.equal(found["latents"]["h"], extract(method, data.test_images, data.mean, data.std, MACHINE)["h"])
    assert same_state(method, before)
    assert method.training and method.encoder.training and not method.projector.training
    with evaluating(method):
        assert not any(module.training for module in method.modules()) and not torch.is_grad_enabled()


def test_extract_says_that_pretraining_diverged():
    method, data = tiny_method(), tiny_data()
    method.encoder[0].weight[:] = math.nan
    with pytest.raises(UserError, match="latents 'h' of the trained network are not finite") as error:
        extract(method, data.test_images, data.mean, data.std, MACHINE)
    assert "\n" not in str(error.value)


def test_combinations():
    upper, lower = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
    latents = {"upper": upper, "lower": lower}
    names = latent_names(latents, halves=True)
    assert names == ("upper", "lower", "both", "mean")
    found = {name: one_latent(latents, name) for name in names}
    assert torch.equal(found["upper"], upper) and torch.equal(found["lower"], lower)
    assert found["both"].tolist() == [[1, 2, 3, 6]] and found["mean"].tolist() == [[2, 4]]
    assert latent_names({"h": upper}) == ("h",)


def test_latents_that_are_no_halves_have_no_mean():
    latents = {"last": torch.tensor([[1.0, 2.0, 3.0]]), "first": torch.tensor([[4.0]])}
    assert latent_names(latents) == ("last", "first", "both")
    assert one_latent(latents, "both").tolist() == [[1, 2, 3, 4]]


def test_mean_of_the_halves_is_global_pooling():
    halves, whole, data = tiny_method(("upper", "lower")), tiny_method(), tiny_data()
    mean = one_latent(extract(halves, data.test_images, data.mean, data.std, MACHINE), "mean")
    pooled = extract(whole, data.test_images, data.mean, data.std, MACHINE)["h"]
    torch.testing.assert_close(mean, pooled, rtol=1e-5, atol=1e-6)


def test_knn_equals_its_loop_form():
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


def test_knn_in_tiles_is_the_same(monkeypatch):
    draw = torch.Generator().manual_seed(2)
    bank, queries = torch.randn(30, 6, generator=draw), torch.randn(20, 6, generator=draw)
    labels = torch.randint(0, 3, (30,), generator=draw)
    whole = knn_scores(bank, labels, queries, 5, 0.5, 3)
    monkeypatch.setattr("lib.evaluate.knn.TILE", 90)  # three queries at a time
    taken: list[int] = []
    monkeypatch.setattr("lib.evaluate.knn.tiles", lambda *sizes: (taken.append(1) or part for part in chunks(*sizes)))
    torch.testing.assert_close(knn_scores(bank, labels, queries, 5, 0.5, 3), whole, rtol=1e-5, atol=1e-6)
    assert len(taken) == 7


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 100.0])
def test_knn_of_the_bank_itself_is_finite_and_right(temperature):
    bank = torch.eye(6).repeat(2, 1)
    labels = torch.arange(6).repeat(2)
    scores = knn_scores(bank, labels, 3 * bank, 2, temperature, 6)
    assert scores.isfinite().all()
    assert accuracy(scores, labels) == 100.0


def test_knn_larger_than_the_bank():
    with pytest.raises(UserError, match="k is 5 .* at most 4"):
        knn_scores(torch.eye(4), torch.arange(4), torch.eye(4), 5, 0.1, 4)


def test_accuracy():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.35, 0.25]])
    labels = torch.tensor([1, 1, 2, 2])
    assert accuracy(scores, labels) == 50.0
    assert accuracy(scores, labels, 2) == 75.0
    assert accuracy(scores, labels, 5) == 100.0


def test_embeddings_name_every_array():
    method, data = tiny_method(("upper", "lower")), tiny_data()
    arrays = embed_test(method, data, MACHINE)
    assert arrays["latents"].tolist() == ["upper", "lower"]
    assert arrays["projections"].tolist() == ["z_upper", "z_lower"]
    assert arrays["classes"].tolist() == data.classes
    assert arrays["upper"].shape == (60, 8) and arrays["upper"].dtype == "float32"
    assert arrays["z_lower"].shape == (60, 4)
    assert arrays["indices"].tolist() == list(range(60)) and arrays["labels"].tolist() == data.test_labels.tolist()


def test_a_main_latent_that_joins_the_others_is_not_joined_with_them_again():
    first, second = torch.randn(5, 3), torch.randn(5, 2)
    joined = torch.cat([first, second], 1)
    assert latent_names({"h": joined, "l": first, "ab": second}) == ("h", "l", "ab")
    assert latent_names({"h": joined + 1, "l": first, "ab": second}) == ("h", "l", "ab", "all")
