"""MoCo (docs/methods.md, 8): closed-form values, slow twins, other implementations, the queue, groups of BatchNorm."""

import math

import lightly.loss
import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import nn
from torch.nn.functional import normalize

from lib.methods import try_method
from lib.methods.moco import dealt_out, enqueue, queue_contrast
from tests.examples import built, directions, pretraining, views
from tests.faults.refusals import refused


def by_loops(queries, keys, queue, temperature: float) -> float:
    queries, keys, queue = (rows.double().tolist() for rows in (queries, keys, queue))
    total = 0.0
    for query, key in zip(queries, keys):
        scores = [math.exp(sum(x * y for x, y in zip(query, other)) / temperature) for other in (key, *queue)]
        total += -math.log(scores[0] / sum(scores))
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize(("count", "size"), [(1, 2), (5, 12), (12, 5)])
def test_it_is_what_its_formula_and_another_implementation_say(count, size, temperature):
    queries, keys, queue = rows = directions(count, 8, seed=1), directions(count, 8, seed=2), directions(size, 8)
    value = queue_contrast(*rows, temperature)
    assert value.item() == pytest.approx(by_loops(*rows, temperature), rel=1e-5)
    own, anchors = torch.arange(count), torch.arange(count).repeat_interleave(size)
    pairs = own, own, anchors, count + torch.arange(size).repeat(count)
    theirs = NTXentLoss(temperature)(queries, indices_tuple=pairs, ref_emb=torch.cat([keys, queue]), ref_labels=None)
    torch.testing.assert_close(value, theirs)


@pytest.mark.parametrize(
    ("key", "temperature", "value"), [(0, 0.1, 0.170551), (1, 0.1, 8.318010), (0, 0.04, 4096 * math.exp(-25))]
)
def test_found_or_orthogonal_keys_among_an_orthogonal_queue(key, temperature, value):
    """At temperature 0.04 the value is 5.7e-8, below what fp32 tells from one."""
    unit = torch.eye(3)
    queries, keys, queue = unit[:1].expand(4, 3), unit[key : key + 1].expand(4, 3), unit[2:].expand(4096, 3)
    assert queue_contrast(queries, keys, queue, temperature).item() == pytest.approx(value, rel=1e-5)


def test_the_gradient_reaches_queries_alone():
    rows = [directions(count, 8, seed=count).requires_grad_() for count in (5, 5, 7)]
    queue_contrast(*rows, 0.3).backward()
    assert rows[0].grad.abs().max() > 0 and rows[1].grad is None and rows[2].grad is None


def test_it_is_a_third_implementations_with_the_same_queue():
    theirs, queue, oldest = lightly.loss.NTXentLoss(0.2, memory_bank_size=(12, 8)), directions(12, 8), torch.tensor(0)
    theirs.memory_bank.bank = queue.clone()
    for step in range(5):  # theirs enqueues too, after it has computed the loss
        queries, keys = directions(4, 8, seed=10 + step).requires_grad_(), directions(4, 8, seed=20 + step)
        torch.testing.assert_close(queue_contrast(queries, keys, queue, 0.2), theirs(queries, keys))
        enqueue(queue, oldest, keys)
        torch.testing.assert_close(queue, theirs.memory_bank.bank)
        assert oldest == theirs.memory_bank.bank_ptr


@pytest.mark.parametrize(("size", "count"), [(12, 4), (12, 12), (6, 2)])
def test_the_queue_is_a_ring_of_the_last_keys(size, count):
    queue, oldest = directions(size, 3), torch.tensor(0)
    pushed = [*queue.clone()]
    for step in range(7):
        keys = directions(count, 3, seed=step + 1)
        enqueue(queue, oldest, keys)
        pushed += [*keys]
        last = {(len(pushed) - size + place) % size: row for place, row in enumerate(pushed[-size:])}
        assert torch.equal(queue, torch.stack([last[place] for place in range(size)]))
        assert oldest.item() == (step + 1) * count % size


def test_the_queue_starts_with_random_directions():
    queue = built("moco", images=4096, queue=4096).queue
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(4096))
    assert queue.mean(0).abs().max() < 0.02 and len({tuple(row[:3].tolist()) for row in queue}) == 4096


@pytest.mark.parametrize(("variant", "ways"), [("moco", ("ab", "ba")), ("moco_v1", ("ab",))])
def test_the_loss_is_the_sum_of_its_directions(variant, ways):
    method = built(variant)
    embeddings = method.embed(views())
    assert set(embeddings) == {name for query, key in ways for name in (f"q_{query}", f"k_{key}")}
    total, parts = method.loss(embeddings)
    temperature = method.options.temperature
    expected = [by_loops(embeddings[f"q_{a}"], embeddings[f"k_{b}"], method.queue, temperature) for a, b in ways]
    assert list(parts) == [f"contrast_{way}" for way in ways]
    assert [part.item() for part in parts.values()] == pytest.approx(expected, abs=1e-6, rel=1e-5)
    assert total.item() == pytest.approx(sum(expected), abs=1e-6, rel=1e-5)


@pytest.mark.parametrize(("variant", "order"), [("moco", "ba"), ("moco_v1", "b")])
def test_keys_join_the_queue_after_the_step_that_they_were_positives_of(variant, order):
    method = built(variant, queue=64)
    before, embeddings = method.queue.clone(), method.embed(views(16))
    first, again = (method.loss(embeddings)[0].item() for _ in range(2))
    assert first == again and torch.equal(method.queue, before) and method.oldest == 0
    method.after_step(0, 4)
    keys = torch.cat([embeddings[f"k_{side}"] for side in order])
    assert torch.equal(method.queue, torch.cat([keys, before[len(keys) :]])) and method.oldest == len(keys)
    assert method.loss(embeddings)[0].item() != first
    assert not method.queue.requires_grad and method.arrived.grad_fn is None


def test_the_heads_are_those_of_version_1_and_2():
    one, two = built("moco_v1").projector, built("moco").projector
    assert isinstance(one, nn.Linear) and one.weight.shape == (128, 512)
    assert [type(layer) for layer in two] == [nn.Linear, nn.ReLU, nn.Linear]
    assert two[0].weight.shape == (512, 512) and two[2].weight.shape == (128, 512)


@pytest.mark.parametrize(("count", "size"), [(16, 2), (16, 8), (256, 64), (12, 4), (14, 4), (7, 7)])
def test_groups_are_dealt_out_like_cards(count, size):
    """First the first of every group, then the second of every group, and so on: all once, and evenly."""
    order = dealt_out(count, size)
    assert order.tolist() == [image for card in range(size) for image in range(card, count, size)]
    for group in (order // size).split(size) if count % size == 0 else ():
        shared = torch.bincount(group, minlength=count // size)
        assert shared.max() - shared.min() <= 1


def test_queries_and_keys_are_normalized_in_groups_and_come_back_in_order():
    method, images = built("moco_groups"), views(16)[0]
    queries, keys = method.queries(images), method.keys(images)
    plain = [method.project(method.latents(images[start : start + 4]))["z"] for start in range(0, 16, 4)]
    assert torch.equal(queries, torch.cat(plain))
    expected = torch.empty_like(keys)
    for start in range(4):  # images 0, 4, 8, 12 make the first group of keys, and so on
        chosen = [start, start + 4, start + 8, start + 12]
        expected[chosen] = normalize(method.momentum_projection(images[chosen]), dim=1)
    torch.testing.assert_close(keys, expected)
    whole, in_order = built("moco"), built("moco_groups", shuffle=False)
    assert (whole.queries(images) - queries).abs().max() > 1e-3
    assert all((other.keys(images) - keys).abs().max() > 1e-3 for other in (whole, in_order))


def test_each_group_counts_into_the_running_statistics_and_none_in_evaluation():
    method, whole = built("moco_groups"), built("moco")
    method.embed(views(16))
    norms = {name: module for name, module in method.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name.split(".")[0] for name in norms} == {"encoder", "momentum_encoder"}
    assert all(norm.num_batches_tracked == 2 * 16 // 4 for norm in norms.values())
    whole.load_state_dict(method.state_dict())
    torch.testing.assert_close(method.eval().embed(views(16)), whole.eval().embed(views(16)))


def test_each_process_has_whole_groups():
    """Two of them where keys change groups: in one group, the shuffle would change nothing."""

    def tried(processes: int, shuffle: bool) -> None:
        params = pretraining("moco_groups", norm_rows=8, shuffle=shuffle)
        try_method(params, images=64, classes=2, processes=processes)

    tried(1, True), tried(2, False)
    for processes, shuffle, share, groups in ((2, True, 8, 2), (4, False, 4, 1)):
        words = f"divides the images of a batch in each process, {share}, into {groups} groups or more"
        refused(lambda: tried(processes, shuffle), words)


@pytest.mark.parametrize(("variant", "images"), [("moco", 32), ("moco_v1", 64)])
def test_a_queue_of_more_images_than_there_are_is_refused(variant, images):
    try_method(pretraining(variant, queue=64), images=images, classes=2)
    words = f"variants.{variant}.queue is 64, keys of {images} images; allowed: "
    refused(lambda: try_method(pretraining(variant, queue=64), images=images - 1, classes=2), words)
    try_method(pretraining(variant, queue=64, epochs=0), images=images - 1, classes=2)  # which meets no queue
