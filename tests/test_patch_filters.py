"""Filters from overlapping patches (docs/methods.md, 13): squares, triplets against a slow twin, the layers."""

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu, triplet_margin_with_distance_loss

from lib.encoders.shallow import Shallow
from lib.methods.patch_filters import PatchFilters, patch_triplets, semi_hard, squared_distances
from lib.params.pretraining import Augment, pretraining_params
from lib.runtime.errors import UserError
from lib.views.augment import augment, draw
from tests.alone import Training, built, normal


def filters(layers: int = 1, pixels: int = 0) -> PatchFilters:
    return built("patch_filters", layers=layers, augment={"crop_pixels": pixels or {1: 8, 2: 15}[layers]})


def squared(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().sum(-1)


def test_a_square_is_cut_out_and_not_resized():
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=stream, dtype=torch.uint8)
    draws = draw(Augment(crop_pixels=8, jitter=0.0, grayscale=0.0), stream, 40, 16, 16)
    views = augment(images, draws, torch.zeros(3), torch.ones(3))
    for image, view, (top, left, height, width), flip in zip(
        images, views, draws.box.tolist(), draws.flip, strict=True
    ):
        assert (height, width) == (8, 8)
        cut = image[:, top : top + 8, left : left + 8].float() / 255
        torch.testing.assert_close(view, cut.flip(2) if flip else cut, atol=1e-6, rtol=0)
    assert set(draws.box[:, 0].tolist()) == set(range(9)), "every place comes up"


def test_a_square_larger_than_the_image_is_refused():
    variants = {"simclr": {"method": "simclr", "augment": {"crop_pixels": 17}}}
    with pytest.raises(UserError, match="augment.crop_pixels of simclr is 17; allowed: at most image_size .16."):
        pretraining_params({"image_size": 16, "variants": variants}, "simclr")


# the loss


def by_loops(patches: Tensor, margin: float, choose) -> tuple[float, float]:
    """``choose`` picks one of the semi-hard negatives' losses."""
    losses, pairs = [], 0
    for i, image in enumerate(patches):
        others = [row for k, other in enumerate(patches) if k != i for row in other]
        for a, p in combinations(range(len(image)), 2):
            near = squared(image[a], image[p]).item()
            semi = [far for far in (squared(image[a], row).item() for row in others) if near < far < near + margin]
            pairs += 1
            if semi:
                losses.append(choose([near - far + margin for far in semi]))
    return (sum(losses) / len(losses) if losses else 0.0), len(losses) / pairs


def test_the_loss_lies_between_the_nearest_and_the_farthest_semi_hard_choice():
    patches = normal(5, 4, 3, dtype=torch.float64)
    lowest, share = by_loops(patches, 2.0, min)
    highest, _ = by_loops(patches, 2.0, max)
    middle, _ = by_loops(patches, 2.0, lambda losses: sum(losses) / len(losses))
    torch.manual_seed(0)
    drawn = torch.stack([patch_triplets(patches, 2.0)[0] for _ in range(300)])
    assert lowest <= drawn.min() and drawn.max() <= highest
    assert drawn.mean().item() == pytest.approx(middle, abs=0.05), "each semi-hard negative is as likely"
    assert patch_triplets(patches, 2.0)[1].item() == pytest.approx(share)
    torch.testing.assert_close(squared_distances(patches[0]), squared(patches[0][:, None], patches[0]))


@pytest.mark.parametrize(("negative", "value"), [(0.0, 0), (0.5, 0), (1.0, 1.25), (1.45, 0.1475), (1.51, 0), (9.0, 0)])
def test_a_triple_costs_what_torch_says_within_the_margin_and_nothing_beyond(negative, value):
    """Two patches 0.5 apart, so that semi-hard is 0.25 < d < 2.25; the other image's second patch is far away."""
    patches = torch.tensor([[[0.0], [0.5]], [[negative], [99.0]]], dtype=torch.float64, requires_grad=True)
    loss, share = patch_triplets(patches, 2.0)
    triple = patches[0, 0], patches[0, 1], patches[1, 0]
    theirs = triplet_margin_with_distance_loss(*triple, distance_function=squared, margin=2.0).item()
    assert loss.item() == pytest.approx(value) and (theirs == pytest.approx(value) or negative <= 0.5)
    assert share.item() == (0.5 if value else 0) and torch.autograd.grad(loss, patches)[0].any() == (value > 0)


def test_semi_hard_on_a_table_made_by_hand():
    distances = torch.tensor([[0.0, 1.0, 0.5, 1.5, 2.9, 3.1]])  # from patch 0; two patches an image
    for _ in range(20):
        chosen, found = semi_hard(distances, torch.tensor([1.0]), torch.tensor([0]), 2, 2.0)
        assert found.all() and chosen.item() in (3, 4)
    assert not semi_hard(distances, torch.tensor([4.0]), torch.tensor([0]), 2, 2.0)[1].any()
    assert not semi_hard(distances, torch.tensor([1.0]), torch.tensor([0]), 2, 0.4)[1].any()


@pytest.mark.parametrize("shift", [0.0, 50.0], ids=["all equal", "negatives far"])
def test_without_a_semi_hard_negative_there_is_neither_loss_nor_gradient(shift):
    patches = (torch.zeros(3, 4, 2) + torch.arange(3.0)[:, None, None] * shift).requires_grad_()
    loss, share = patch_triplets(patches, 2.0)
    loss.backward()
    assert loss.item() == 0 and share.item() == 0 and patches.grad.abs().max() == 0


def seeded(patches: Tensor) -> Tensor:
    torch.manual_seed(0)
    return patch_triplets(patches, 2.0)[0]


def test_the_loss_has_the_gradient_of_its_value_and_is_fp32_whatever_the_autocast():
    patches = normal(3, 3, 2, seed=3, dtype=torch.float64).requires_grad_()
    assert patch_triplets(patches, 2.0)[1] > 0 and torch.autograd.gradcheck(seeded, patches)
    wide = 0.3 * normal(6, 4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = seeded(wide)
    assert inside.dtype == torch.float32 and inside > 0 and torch.equal(inside, seeded(wide))


def test_what_is_chosen_does_not_depend_on_how_many_pairs_are_taken_at_a_time(monkeypatch):
    patches = normal(6, 4, 3)
    whole = seeded(patches)
    monkeypatch.setattr("lib.runtime.chunks.ELEMENTS", 100)
    assert seeded(patches).item() == whole.item()


# the layers


@pytest.mark.parametrize(("layers", "pixels", "width"), [(1, 8, 256), (2, 15, 512)])
def test_patches_are_windows_of_a_layers_input_and_their_embeddings_those_of_the_layer(layers, pixels, width):
    method, inputs = filters(layers), normal(2, 3, pixels, pixels)
    if layers == 2:
        method.after_step(3, 8)
    rows = method.embed([inputs])["e"].view(2, 4, width)
    layer = method.encoder.conv1
    if layers == 2:
        inputs, layer = method.encoder(inputs, layer=1), method.encoder.conv2
        assert inputs.shape == (2, 256, 5, 5)
    whole = conv2d(inputs, layer.weight, layer.bias)  # [2, width, 3, 3]
    for place, (top, left) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        window = relu(whole[:, :, top : top + 2, left : left + 2].amax((2, 3)))
        torch.testing.assert_close(rows[:, place], window, atol=1e-5, rtol=1e-5)


def test_a_patch_becomes_one_place():
    assert Shallow()(torch.zeros(5, 3, 7, 7)).shape == (5, 256, 1, 1)
    assert Shallow(pool=False)(torch.zeros(5, 3, 7, 7)).shape == (5, 256, 2, 2)


def test_the_first_layers_patches_are_in_the_middle_of_the_larger_square():
    one, two, square = filters(), filters(2), normal(2, 3, 15, 15)
    two.encoder.conv1.load_state_dict(one.encoder.conv1.state_dict())
    torch.testing.assert_close(two.embed([square])["e"], one.embed([square[:, :, 3:11, 3:11]])["e"])


def test_the_first_layer_learns_in_the_first_half_and_the_second_in_the_second():
    """The encoder is called as a whole, so that a compiled one is used."""
    training, seen, calls = Training(filters(2)), [], []
    encoder = training.method.encoder
    encoder.register_forward_hook(lambda *_: calls.append(training.method.now))
    for _ in range(8):
        training.step(normal(16, 3, 15, 15))
        seen.append([layer.weight.detach().clone() for layer in (encoder.conv1, encoder.conv2)])
    for before, after, half in zip(seen, seen[1:], [1, 1, 1, 2, 2, 2, 2]):
        assert [not torch.equal(*pair) for pair in zip(before, after)] == [half == 1, half == 2]
    assert calls == [1] * 4 + [2] * 8


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_training_goes_on_with_the_layer_that_it_was_at(stop):
    whole, stopped = Training(filters(2)), Training(filters(2))
    for training, steps in ((whole, 8), (stopped, stop)):
        for _ in range(steps):
            training.step(normal(16, 3, 15, 15, seed=training.done))
    resumed = stopped.resumed(filters(2))
    assert resumed.method.now == (2 if stop >= 4 else 1)
    while resumed.done < 8:
        resumed.step(normal(16, 3, 15, 15, seed=resumed.done))
    for name, value in whole.method.state_dict().items():
        assert torch.equal(resumed.method.state_dict()[name], value), name


def test_latents_of_both_layers_and_no_shared_encoder():
    latents = filters(2).eval().latents(normal(3, 3, 16, 16))
    assert {name: rows.shape for name, rows in latents.items()} == {"h": (3, 512), "first": (3, 256)}
    assert PatchFilters.reads(PatchFilters.Options()) == frozenset() and filters().encoder.name == "shallow"


@pytest.mark.parametrize(("layers", "pixels", "allowed"), [(1, 7, "8 to 10"), (1, 11, "8 to 10"), (2, 14, "15 to 20")])
def test_squares_without_patches_are_refused(layers, pixels, allowed):
    words = f"crop_pixels of patch_filters is {pixels}; allowed for the method patch_filters with layers {layers}: "
    with pytest.raises(UserError, match=words + allowed):
        filters(layers, pixels)
