"""Filters from overlapping patches (docs/methods.md, 13): squares, triplets against a slow twin, the layer."""

import dataclasses
import io
from itertools import combinations

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch.nn.functional import conv2d, relu, triplet_margin_with_distance_loss

from lib.core.trainer import Pretrainer
from lib.encoders.shallow import Shallow
from lib.losses.patch_triplets import hinge, patch_triplets, semi_hard, squared_distances
from lib.methods import build_method
from lib.params.pretraining import Augment, Pretraining
from lib.runtime.errors import UserError
from lib.views.augment import augment, draw
from tests.examples import CPU, images, pretraining


def squared(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first - second).square().sum(-1)


def test_a_square_is_cut_out_and_not_resized():
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=stream, dtype=torch.uint8)
    draws = draw(Augment(crop_pixels=8, jitter=0.0, grayscale=0.0), stream, 40, 16, 16)
    views = augment(images, draws, torch.zeros(3), torch.ones(3))
    assert views.shape == (40, 3, 8, 8)
    for image, view, (top, left, height, width), flip in zip(images, views, draws.box.tolist(), draws.flip):
        assert (height, width) == (8, 8) and 0 <= top <= 8 and 0 <= left <= 8
        cut = image[:, top : top + 8, left : left + 8].float() / 255
        torch.testing.assert_close(view, cut.flip(2) if flip else cut, atol=1e-6, rtol=0)
    assert set(draws.box[:, 0].tolist()) == set(range(9)), "every place comes up"


def test_a_square_larger_than_the_image_is_refused():
    with pytest.raises(UserError, match="augment.crop_pixels of simclr is 17; allowed: at most image_size .16."):
        pretraining("simclr", augment__crop_pixels=17)


def test_patches_are_windows_of_the_square_and_their_embeddings_those_of_the_layer():
    method = build_method(pretraining("patch_filters"))
    square = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = method.embed([square])["e"].view(2, 4, 256)
    layer = method.encoder.conv1
    whole = conv2d(square, layer.weight, layer.bias)  # [2, 256, 3, 3]
    for place, (top, left) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        window = relu(whole[:, :, top : top + 2, left : left + 2].amax((2, 3)))
        torch.testing.assert_close(rows[:, place], window, atol=1e-5, rtol=1e-5)


def test_a_patch_becomes_one_place():
    assert Shallow()(torch.zeros(5, 3, 7, 7)).shape == (5, 256, 1, 1)
    assert Shallow(pool=False)(torch.zeros(5, 3, 7, 7)).shape == (5, 256, 2, 2)


def by_loops(patches: torch.Tensor, margin: float, choose) -> tuple[float, int]:
    """``choose`` picks one of the semi-hard negatives' losses."""
    losses, pairs = [], 0
    for i, image in enumerate(patches):
        others = [row for k, other in enumerate(patches) if k != i for row in other]
        for a in range(len(image)):
            for p in range(a + 1, len(image)):
                near = squared(image[a], image[p]).item()
                semi = [far for far in (squared(image[a], row).item() for row in others) if near < far < near + margin]
                pairs += 1
                if semi:
                    losses.append(choose([near - far + margin for far in semi]))
    return (sum(losses) / len(losses) if losses else 0.0), len(losses) / pairs


def test_the_loss_lies_between_the_nearest_and_the_farthest_semi_hard_choice():
    patches = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lowest, share = by_loops(patches, 2.0, min)
    highest, _ = by_loops(patches, 2.0, max)
    middle, _ = by_loops(patches, 2.0, lambda losses: sum(losses) / len(losses))
    torch.manual_seed(0)
    drawn = torch.stack([patch_triplets(patches, 2.0)[0] for _ in range(300)])
    assert lowest <= drawn.min() and drawn.max() <= highest
    assert drawn.mean().item() == pytest.approx(middle, abs=0.05), "each semi-hard negative is as likely"
    assert patch_triplets(patches, 2.0)[1].item() == pytest.approx(share)


def test_one_choice_gives_the_value_of_torch():
    """Two images of two patches, with a single semi-hard negative for each pair."""
    patches = torch.tensor([[[0.0, 0.0], [0.5, 0.0]], [[1.0, 0.0], [9.0, 0.0]]], dtype=torch.float64)
    loss, share = patch_triplets(patches, 2.0)
    theirs = triplet_margin_with_distance_loss(
        patches[0, 0], patches[0, 1], patches[1, 0], distance_function=squared, margin=2.0
    )
    assert share.item() == 0.5 and loss.item() == pytest.approx(theirs.item())


@pytest.mark.parametrize(("negative", "value"), [((0, 0), 2), ((1, 0), 1), ((1, 1), 0), ((9, 0), 0)])
def test_the_hinge_of_two_equal_patches(negative, value):
    """The margin where the negative is equal too, 0 and no slope from there on where it is as far as the margin.

    The whole loss takes neither: only what is farther than the positive, by less than the margin, is semi-hard.
    """
    rows = torch.tensor([(0, 0), (0, 0), negative], dtype=torch.float64, requires_grad=True)
    distances = squared_distances(rows)
    found = hinge(distances[0, 1], distances[0, 2], 2.0)
    found.backward()
    assert found.item() == value and rows.grad.any() == (value == 1)
    theirs = triplet_margin_with_distance_loss(*rows.detach()[:, None], distance_function=squared, margin=2.0)
    assert found.item() == theirs.item()


def test_semi_hard_on_a_table_made_by_hand():
    distances = torch.tensor([[0.0, 1.0, 0.5, 1.5, 2.9, 3.1]])  # from patch 0; two patches an image
    for _ in range(20):
        chosen, found = semi_hard(distances, torch.tensor([1.0]), torch.tensor([0]), 2, 2.0)
        assert found.all() and chosen.item() in (3, 4)
    assert not semi_hard(distances, torch.tensor([4.0]), torch.tensor([0]), 2, 2.0)[1].any()
    assert not semi_hard(distances, torch.tensor([1.0]), torch.tensor([0]), 2, 0.4)[1].any()


def by_pair(triples) -> dict[tuple[int, int], set[int]]:
    """The negatives of each pair, of index tensors (anchors, positives, negatives)."""
    found = {}
    for anchor, positive, negative in zip(*(indices.tolist() for indices in triples)):
        found.setdefault((anchor, positive), set()).add(negative)
    return found


def test_semi_hard_negatives_are_another_implementations():
    """Whatever it finds for a pair comes up, nothing else does, and the triples drawn cost the same."""
    patches = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))
    rows, owners = patches.flatten(0, 1), torch.arange(5).repeat_interleave(4)
    metric = LpDistance(p=2, power=2, normalize_embeddings=False)
    theirs = by_pair(TripletMarginMiner(margin=2.0, type_of_triplets="semihard", distance=metric)(rows, owners))
    anchors, positives = torch.tensor(
        [(4 * image + a, 4 * image + p) for image in range(5) for a, p in combinations(range(4), 2)]
    ).T
    distances = squared_distances(rows)
    torch.testing.assert_close(distances, metric(rows), atol=1e-5, rtol=1e-5)

    def drawn() -> list[torch.Tensor]:
        chosen, found = semi_hard(distances[anchors], distances[anchors, positives], owners[anchors], 4, 2.0)
        return [indices[found] for indices in (anchors, positives, chosen)]

    torch.manual_seed(0)
    ours = by_pair(map(torch.cat, zip(*(drawn() for _ in range(400)))))
    assert ours == {pair: negatives for pair, negatives in theirs.items() if pair[0] < pair[1]}
    assert 0 < len(ours) < len(anchors) and max(map(len, ours.values())) > 3
    torch.manual_seed(0)
    cost = TripletMarginLoss(margin=2.0, distance=metric, reducer=MeanReducer())(rows, owners, drawn())
    torch.manual_seed(0)
    torch.testing.assert_close(patch_triplets(patches, 2.0)[0], cost, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 50.0], ids=["all equal", "negatives far"])
def test_without_a_semi_hard_negative_there_is_neither_loss_nor_slope(shift):
    patches = torch.zeros(3, 4, 2) + torch.arange(3.0)[:, None, None] * shift
    patches.requires_grad_()
    loss, share = patch_triplets(patches, 2.0)
    loss.backward()
    assert loss.item() == 0 and share.item() == 0 and patches.grad.abs().max() == 0


def test_distances_are_squared_euclidean():
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(squared_distances(rows), squared(rows[:, None], rows[None]))


def test_gradients():
    patches = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)

    def loss(rows):
        torch.manual_seed(0)
        return patch_triplets(rows, 2.0)[0]

    assert patch_triplets(patches, 2.0)[1] > 0 and torch.autograd.gradcheck(loss, patches)


@pytest.mark.parametrize("pixels", [0, 7, 11])
def test_other_squares_are_refused_by_name(pixels):
    params = pretraining("patch_filters")
    params = dataclasses.replace(params, augment=dataclasses.replace(params.augment, crop_pixels=pixels))
    with pytest.raises(
        UserError,
        match=f"augment.crop_pixels of patch_filters is {pixels}; allowed for the method "
        "patch_filters with layers 1: 8 to 10",
    ):
        build_method(params)


def test_what_is_chosen_does_not_depend_on_tiles(monkeypatch):
    patches = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(0)
    whole = patch_triplets(patches, 2.0)
    monkeypatch.setattr(tiles, "ELEMENTS", 100)
    torch.manual_seed(0)
    assert [value.item() for value in patch_triplets(patches, 2.0)] == [value.item() for value in whole]


def two_layers(**changes) -> Pretraining:
    return pretraining("patch_filters_two", **changes)


def trainer(**changes) -> Pretrainer:
    params = two_layers(**changes)
    torch.manual_seed(0)
    return Pretrainer(build_method(params), images(), params, CPU)


def test_the_second_layers_patches_are_windows_of_the_firsts_map():
    method = build_method(two_layers())
    method.after_step(3, 8)
    square = torch.randn(2, 3, 15, 15, generator=torch.Generator().manual_seed(0))
    rows = method.embed([square])["e"].view(2, 4, 512)
    first, layer = method.encoder(square, layer=1), method.encoder.conv2
    assert first.shape == (2, 256, 5, 5)
    whole = conv2d(first, layer.weight, layer.bias)  # [2, 512, 3, 3]
    for place, (top, left) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        window = relu(whole[:, :, top : top + 2, left : left + 2].amax((2, 3)))
        torch.testing.assert_close(rows[:, place], window, atol=1e-5, rtol=1e-5)


def test_the_first_layers_patches_are_in_the_middle_of_the_larger_square():
    one, two = build_method(pretraining("patch_filters")), build_method(two_layers())
    two.encoder.conv1.load_state_dict(one.encoder.conv1.state_dict())
    square = torch.randn(2, 3, 15, 15, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(two.embed([square])["e"], one.embed([square[:, :, 3:11, 3:11]])["e"])


def test_the_first_layer_learns_in_the_first_half_and_the_second_in_the_second():
    run, seen = trainer(), []
    assert run.steps == 8
    for number in range(run.steps):
        steps(run, number, number + 1)
        seen.append([layer.weight.detach().clone() for layer in (run.method.encoder.conv1, run.method.encoder.conv2)])
    for before, after, half in zip(seen, seen[1:], [1, 1, 1, 2, 2, 2, 2]):
        moved = [not torch.equal(*pair) for pair in zip(before, after)]
        assert moved == [half == 1, half == 2]


def steps(run: Pretrainer, first: int, last: int) -> None:
    for number in range(first, last):
        epoch, step = divmod(number, run.steps_per_epoch)
        run.step(epoch, step, run.order(epoch)[step])


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_training_goes_on_with_the_layer_that_it_was_at(stop):
    whole, stopped, resumed = (trainer() for _ in range(3))
    steps(whole, 0, whole.steps)
    steps(stopped, 0, stop)
    kept = io.BytesIO()
    torch.save(stopped.state(), kept)
    kept.seek(0)
    resumed.restore(torch.load(kept, weights_only=True))
    assert resumed.method.now == (2 if stop >= 4 else 1)
    steps(resumed, stop, resumed.steps)
    for name, value in whole.method.state_dict().items():
        assert torch.equal(resumed.method.state_dict()[name], value), name


def test_micro_batches_of_the_second_half_have_the_gradient_of_the_whole():
    found = []
    for size in (0, 4):
        run = trainer(micro_batch_size=size)
        run.method.after_step(3, 8)
        values = run.gradient(1, 0, run.order(1)[0])
        found.append([values, run.method.encoder.conv2.weight.grad])
        assert run.method.encoder.conv1.weight.grad is None
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_a_compiled_encoder_is_used_in_training():
    run = trainer()
    calls = []
    run.method.encoder.register_forward_hook(lambda *_: calls.append(run.method.now))
    steps(run, 3, 5)
    assert calls == [1, 2, 2]


def test_latents_of_both_layers():
    method = build_method(two_layers()).eval()
    found = method.latents(torch.randn(3, 3, 16, 16))
    assert {name: rows.shape for name, rows in found.items()} == {"h": (3, 512), "first": (3, 256)}


@pytest.mark.parametrize("pixels", [0, 14, 21])
def test_squares_without_patches_for_the_second_layer_are_refused(pixels):
    params = two_layers()
    params = dataclasses.replace(params, augment=dataclasses.replace(params.augment, crop_pixels=pixels))
    with pytest.raises(UserError, match=f"crop_pixels of patch_filters_two is {pixels}; .* with layers 2: 15 to 20"):
        build_method(params)
