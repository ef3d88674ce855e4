"""Filters from overlapping patches (docs/methods.md, 13): squares, pixels, triplets against a slow twin, the layers."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu, triplet_margin_with_distance_loss

from lib.encoders.shallow import Shallow
from lib.methods.export import load_method, save_method
from lib.methods.patch_filters import PatchFilters, hardest, patch_triplets, semi_hard, squared_distances
from lib.params.pretraining import Augment
from lib.views.augment import augment, draw
from tests.examples import Training, built, natural, normal, normalized


def filters(layers: int = 1, pixels: int = 0) -> PatchFilters:
    pixels = pixels or {1: 8, 2: 15}[layers]
    return built("patch_filters", layers=layers, augment={"crop_pixels": pixels}, images=0)


def squared(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().sum(-1)


def test_a_square_is_cut_out_and_not_resized():
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=stream, dtype=torch.uint8)
    draws = draw(Augment(crop_pixels=8, jitter=0.0, grayscale=0.0), stream, 40, 16, 16)
    views = augment(images, draws, torch.zeros(3), torch.ones(3))
    for image, view, (top, left, height, width), flip in zip(images, views, draws.box.tolist(), draws.flip):
        assert (height, width) == (8, 8)
        cut = image[:, top : top + 8, left : left + 8].float() / 255
        torch.testing.assert_close(view, cut.flip(2) if flip else cut, atol=1e-6, rtol=0)
    assert set(draws.box[:, 0].tolist()) == set(range(9)), "every place comes up"


# pixels


def test_at_first_every_pair_has_a_semi_hard_negative_as_the_margin_is_one_of_pixels_in_0_to_1():
    """On 512 images of CIFAR-10 100 % of the pairs have one, and 61 % where filters see normalized pixels; on these
    random images, made to have such patches, the second figure is 62 %."""
    method = filters()
    views, about = normalized(natural(512, 32)[:, :, 12:20, 12:20])
    _, as_normalized = method.loss(method.embed([views]))
    method.setup(about)
    _, as_pixels = method.loss(method.embed([views]))
    assert as_pixels["pairs_with_negative"].item() == 1
    assert as_normalized["pairs_with_negative"].item() == pytest.approx(0.61, abs=0.08)


def test_filters_see_pixels_in_0_to_1_in_training_in_evaluation_and_from_a_file(tmp_path: Path):
    method, images = filters(2), natural(3, 15)
    views, about = normalized(images)
    method.setup(about)
    torch.testing.assert_close(method.pixels(views), images)
    square = conv2d(images[:, :, 3:11, 3:11], method.encoder.conv1.weight, method.encoder.conv1.bias)
    first = relu(square.unfold(2, 2, 1).unfold(3, 2, 1).amax((4, 5)))  # [3, 256, 2, 2], the patches
    torch.testing.assert_close(method.embed([views])["e"], first.permute(0, 2, 3, 1).flatten(1))
    latents = method.eval().latents(views)
    assert list(latents) == ["h", "first"] and method.reads(method.options) == frozenset()
    torch.testing.assert_close(latents["first"], method.encoder(images, layer=1).mean((2, 3)))
    torch.testing.assert_close(latents["h"], method.encoder(images).mean((2, 3)))
    save_method(tmp_path / "filters.safetensors", method, method.params, {})
    loaded, _ = load_method(tmp_path / "filters.safetensors")
    torch.testing.assert_close(loaded.latents(views), latents)


# the loss


def by_loops(patches: Tensor, found: Callable[[float, list[float]], list[float]]) -> tuple[float, float]:
    """``found``: a pair's distance and those of the other images' patches to the pair's loss in a list, or none."""
    losses, pairs = [], 0
    for i, image in enumerate(patches):
        others = [row for k, other in enumerate(patches) if k != i for row in other]
        for a, p in combinations(range(len(image)), 2):
            near = squared(image[a], image[p]).item()
            losses += found(near, [squared(image[a], row).item() for row in others])
            pairs += 1
    return (sum(losses) / len(losses) if losses else 0.0), len(losses) / pairs


def test_the_semi_hard_loss_lies_between_the_nearest_and_the_farthest_choice():
    patches = normal(5, 4, 3, dtype=torch.float64)

    def semi(choose: Callable[[list[float]], float]) -> tuple[float, float]:
        def one(near: float, far: list[float]) -> list[float]:
            fitting = [near - other + 2 for other in far if near < other < near + 2]
            return [choose(fitting)] if fitting else []

        return by_loops(patches, one)

    (lowest, share), (highest, _), (middle, _) = semi(min), semi(max), semi(lambda losses: sum(losses) / len(losses))
    torch.manual_seed(0)
    drawn = torch.stack([patch_triplets(patches, 2.0, semi_hard)[0] for _ in range(300)])
    assert lowest <= drawn.min() and drawn.max() <= highest
    assert drawn.mean().item() == pytest.approx(middle, abs=0.05), "each semi-hard negative is as likely"
    assert patch_triplets(patches, 2.0, semi_hard)[1].item() == pytest.approx(share)
    torch.testing.assert_close(squared_distances(patches[0]), squared(patches[0][:, None], patches[0]))


@pytest.mark.parametrize("margin", [0.05, 2.0])
def test_the_hardest_loss_is_that_of_the_nearest_patch_of_another_image(margin):
    patches = normal(5, 4, 3, dtype=torch.float64)
    expected = by_loops(patches, lambda near, far: [near - min(far) + margin] * (min(far) < near + margin))
    loss, share = patch_triplets(patches, margin, hardest)
    assert (loss.item(), share.item()) == pytest.approx(expected) and (share < 1) == (margin < 1)


@pytest.mark.parametrize(("negative", "value"), [(0.0, 0), (0.5, 0), (1.0, 1.25), (1.45, 0.1475), (1.51, 0), (9.0, 0)])
def test_a_triple_costs_what_torch_says_within_the_margin_and_nothing_beyond(negative, value):
    """Two patches 0.5 apart, so that semi-hard is 0.25 < d < 2.25; the other image's second patch is far away."""
    patches = torch.tensor([[[0.0], [0.5]], [[negative], [99.0]]], dtype=torch.float64, requires_grad=True)
    loss, share = patch_triplets(patches, 2.0, semi_hard)
    triple = patches[0, 0], patches[0, 1], patches[1, 0]
    theirs = triplet_margin_with_distance_loss(*triple, distance_function=squared, margin=2.0).item()
    assert loss.item() == pytest.approx(value) and (theirs == pytest.approx(value) or negative <= 0.5)
    assert share.item() == (0.5 if value else 0) and torch.autograd.grad(loss, patches)[0].any() == (value > 0)


@pytest.mark.parametrize("mining", [semi_hard, hardest])
@pytest.mark.parametrize("shift", [0.0, 50.0], ids=["all equal", "negatives far"])
def test_without_a_negative_there_is_neither_loss_nor_gradient(shift, mining):
    patches = (torch.zeros(3, 4, 2) + torch.arange(3.0)[:, None, None] * shift).requires_grad_()
    loss, share = patch_triplets(patches, 2.0, mining)
    loss.backward()
    collapsed = mining is hardest and not shift  # the margin itself is what equal patches cost
    assert loss.item() == 2 * collapsed and share.item() == collapsed and patches.grad.abs().max() == 0


@pytest.mark.parametrize("mining", [semi_hard, hardest])
def test_the_loss_is_the_same_in_chunks(mining, monkeypatch):
    def loss() -> float:
        torch.manual_seed(0)
        return patch_triplets(0.3 * normal(6, 4, 64), 2.0, mining)[0].item()

    whole = loss()
    monkeypatch.setattr("lib.runtime.chunks.ELEMENTS", 100)
    assert loss() == whole > 0


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
    for pool, side in ((True, 1), (False, 2)):
        assert Shallow(pool=pool)(torch.zeros(5, 3, 7, 7)).shape == (5, 256, side, side)


def test_the_first_layer_has_semi_hard_negatives_and_half_of_the_steps_and_the_second_the_hardest_and_the_rest():
    """The encoder is called as a whole, so that a compiled one is used."""
    training, seen, calls, rows = Training(filters(2)), [], [], 0.1 * normal(6, 4, 256).flatten(1)
    method, encoder = training.method, training.method.encoder
    encoder.register_forward_hook(lambda *_: calls.append(method.now))
    for width, mining in [(256, semi_hard)] * 4 + [(512, hardest)] * 4:
        torch.manual_seed(0)
        loss, parts = method.loss({"e": rows})
        torch.manual_seed(0)
        expected = patch_triplets(rows.view(6, -1, width), 2.0, mining)
        assert (loss, parts["pairs_with_negative"]) == expected and loss > 0
        training.step(normal(16, 3, 15, 15))
        seen.append([layer.weight.detach().clone() for layer in (encoder.conv1, encoder.conv2)])
    for before, after, half in zip(seen, seen[1:], [1, 1, 1, 2, 2, 2, 2]):
        assert [not torch.equal(*pair) for pair in zip(before, after)] == [half == 1, half == 2]
    assert calls == [1] * 4 + [2] * 8
