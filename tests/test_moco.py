"""MoCo (docs/methods.md, 8): closed-form values, slow twins, other implementations, the queue, groups of BatchNorm."""

import math
from contextlib import nullcontext
from dataclasses import replace

import lightly.loss
import pytest
import torch
from lib.losses.queue import queue_contrast
from pytorch_metric_learning.losses import NTXentLoss
from torch import nn
from torch.nn.functional import normalize

from lib.core import processes
from lib.core.trainer import Pretrainer
from lib.methods import build_method, try_method
from lib.methods.moco import dealt_out, enqueue
from lib.runtime.errors import UserError
from tests.examples import CPU, images
from tests.test_momentum import params_of, run_of, steps


def rows_of(count: int, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def built(variant: str = "moco", **options):
    """With the preset's groups, sized for few images."""
    torch.manual_seed(0)
    return build_method(params_of(variant, **{"norm_rows": 2, "shuffle": True, **options})).train()


def views(count: int = 8) -> list[torch.Tensor]:
    stream = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, 16, 16, generator=stream) for _ in range(2)]


def by_loops(queries, keys, queue, temperature: float) -> float:
    queries, keys, queue = (rows.double().tolist() for rows in (queries, keys, queue))
    total = 0.0
    for query, key in zip(queries, keys):
        scores = [math.exp(sum(x * y for x, y in zip(query, other)) / temperature) for other in (key, *queue)]
        total += -math.log(scores[0] / sum(scores))
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize(("count", "size"), [(1, 2), (5, 12), (12, 5)])
def test_it_is_what_its_formula_says(count, size, temperature):
    given = rows_of(count, seed=1), rows_of(count, seed=2), rows_of(size, seed=3)
    assert queue_contrast(*given, temperature).item() == pytest.approx(by_loops(*given, temperature), rel=1e-5)


@pytest.mark.parametrize(("key", "value"), [(0, 0.170551), (1, 8.318010)])
def test_found_or_orthogonal_keys_among_an_orthogonal_queue(key, value):
    unit = torch.eye(3)
    queries, keys, queue = unit[:1].expand(4, 3), unit[key : key + 1].expand(4, 3), unit[2:].expand(4096, 3)
    assert queue_contrast(queries, keys, queue, 0.1).item() == pytest.approx(value, abs=1e-5)
    assert value == pytest.approx(math.log(1 + 4096 * math.exp(-10)) if key == 0 else math.log(4097), abs=1e-6)


def test_other_rows_of_the_batch_do_not_count():
    queries, keys, queue = rows_of(6, seed=1), rows_of(6, seed=2), rows_of(10, seed=3)
    alone = [queue_contrast(queries[i : i + 1], keys[i : i + 1], queue, 0.2).item() for i in range(6)]
    assert queue_contrast(queries, keys, queue, 0.2).item() == pytest.approx(sum(alone) / 6, rel=1e-5)


def test_the_gradient_is_the_numerical_one_and_reaches_queries_alone():
    queries, keys, queue = (
        rows_of(count, 4, seed, torch.float64).requires_grad_() for count, seed in ((5, 1), (5, 2), (7, 3))
    )
    assert torch.autograd.gradcheck(lambda rows: queue_contrast(rows, keys, queue, 0.3), (queries,))
    queue_contrast(queries, keys, queue, 0.3).backward()
    assert queries.grad.abs().max() > 0 and keys.grad is None and queue.grad is None


def test_it_is_another_implementations_with_the_same_queue():
    theirs, queue, oldest = lightly.loss.NTXentLoss(0.2, memory_bank_size=(12, 8)), rows_of(12), torch.tensor(0)
    theirs.memory_bank.bank = queue.clone()
    for step in range(5):  # theirs enqueues too, after it has computed the loss
        queries, keys = rows_of(4, seed=10 + step).requires_grad_(), rows_of(4, seed=20 + step)
        torch.testing.assert_close(queue_contrast(queries, keys, queue, 0.2), theirs(queries, keys))
        enqueue(queue, oldest, keys)
        torch.testing.assert_close(queue, theirs.memory_bank.bank)
        assert oldest == theirs.memory_bank.bank_ptr


def test_it_is_a_third_implementations_with_pairs_written_out():
    queries, keys, queue = rows_of(6, seed=1), rows_of(6, seed=2), rows_of(10, seed=3)
    own, anchors, negatives = torch.arange(6), torch.arange(6).repeat_interleave(10), 6 + torch.arange(10).repeat(6)
    theirs = NTXentLoss(0.2)(
        queries, indices_tuple=(own, own, anchors, negatives), ref_emb=torch.cat([keys, queue]), ref_labels=None
    )
    torch.testing.assert_close(queue_contrast(queries, keys, queue, 0.2), theirs)


@pytest.mark.parametrize(("size", "count"), [(12, 4), (12, 12), (6, 2)])
def test_the_queue_is_a_ring_of_the_last_keys(size, count):
    queue, oldest = rows_of(size, 3), torch.tensor(0)
    pushed = [*queue.clone()]
    for step in range(7):
        keys = rows_of(count, 3, seed=step + 1)
        enqueue(queue, oldest, keys)
        pushed += [*keys]
        last = {(len(pushed) - size + place) % size: row for place, row in enumerate(pushed[-size:])}
        assert torch.equal(queue, torch.stack([last[place] for place in range(size)]))
        assert oldest.item() == (step + 1) * count % size


def test_the_queue_starts_with_random_directions():
    queue = built(queue=4096).queue
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(4096))
    assert queue.mean(0).abs().max() < 0.02 and len({tuple(row[:3].tolist()) for row in queue}) == 4096


@pytest.mark.parametrize(("variant", "ways"), [("moco", ("ab", "ba")), ("moco_v1", ("ab",))])
def test_the_loss_is_the_sum_of_its_directions(variant, ways):
    method = built(variant)
    found = method.embed(views())
    assert set(found) == {name for query, key in ways for name in (f"q_{query}", f"k_{key}")}
    total, parts = method.loss(found)
    temperature = method.options.temperature
    expected = [by_loops(found[f"q_{a}"], found[f"k_{b}"], method.queue, temperature) for a, b in ways]
    assert [part.item() for part in parts.values()] == pytest.approx(expected, abs=1e-6, rel=1e-5)
    assert total.item() == pytest.approx(sum(expected), abs=1e-6, rel=1e-5)


@pytest.mark.parametrize(("variant", "order"), [("moco", "ba"), ("moco_v1", "b")])
def test_keys_join_the_queue_after_the_step_that_they_were_positives_of(variant, order):
    method = built(variant, queue=64)
    before = method.queue.clone()
    found = method.embed(views(16))
    first, again = (method.loss(found)[0].item() for _ in range(2))
    assert first == again and torch.equal(method.queue, before) and method.oldest == 0
    method.after_step(0, 4)
    keys = torch.cat([found[f"k_{side}"] for side in order])
    assert torch.equal(method.queue, torch.cat([keys, before[len(keys) :]])) and method.oldest == len(keys)
    assert method.loss(found)[0].item() != first
    assert not method.queue.requires_grad and method.arrived.grad_fn is None


def test_in_training_the_queue_holds_the_keys_of_the_last_steps():
    run, seen = run_of("moco_v1", queue=48), []
    for step in range(5):
        steps(run, range(step, step + 1))
        seen.append(run.method.arrived.clone())
        assert run.method.oldest == 16 * (step + 1) % 48
    assert torch.equal(run.method.queue, torch.cat([seen[3], seen[4], seen[2]]))


def test_the_heads_are_those_of_version_1_and_2():
    one, two = built("moco_v1").projector, built("moco").projector
    assert isinstance(one, nn.Linear) and one.weight.shape == (128, 512)
    assert [type(layer) for layer in two] == [nn.Linear, nn.ReLU, nn.Linear]
    assert two[0].weight.shape == (512, 512) and two[2].weight.shape == (128, 512)


@pytest.mark.parametrize(("count", "rows"), [(16, 2), (16, 4), (16, 8), (256, 32), (12, 4), (14, 4), (7, 7)])
def test_groups_are_dealt_out_like_cards(count, rows):
    """First the first row of every group, then the second of every group, and so on: all of them once."""
    expected = [row for card in range(rows) for row in range(card, count, rows)]
    assert dealt_out(count, rows).tolist() == expected and sorted(expected) == list(range(count))


@pytest.mark.parametrize(("count", "rows"), [(16, 2), (16, 4), (16, 8), (256, 32), (256, 64), (12, 4)])
def test_every_group_of_keys_has_as_many_of_one_group_of_queries_as_of_another(count, rows):
    old = dealt_out(count, rows) // rows
    for group in old.split(rows):
        shared = torch.bincount(group, minlength=count // rows)
        assert shared.max() - shared.min() <= 1


def test_queries_and_keys_are_normalised_in_groups_and_come_back_in_order():
    method, picture = built(norm_rows=4), views(16)[0]
    queries, keys = method.queries(picture), method.keys(picture)
    plain = [method.project(method.latents(picture[start : start + 4]))["z"] for start in range(0, 16, 4)]
    assert torch.equal(queries, torch.cat(plain))
    expected = torch.empty_like(keys)
    for start in range(4):  # rows 0, 4, 8, 12 make the first group of keys, and so on
        chosen = [start, start + 4, start + 8, start + 12]
        expected[chosen] = normalize(method.momentum_projection(picture[chosen]), dim=1)
    torch.testing.assert_close(keys, expected)
    whole = built(norm_rows=0, shuffle=False)
    assert (whole.queries(picture) - queries).abs().max() > 1e-3
    assert (built(norm_rows=4, shuffle=False).keys(picture) - keys).abs().max() > 1e-3
    assert (whole.keys(picture) - keys).abs().max() > 1e-3


def test_without_batch_statistics_groups_and_order_do_not_matter():
    picture = views(16)[0]
    methods = [built(**options).eval() for options in ({"norm_rows": 4}, {"norm_rows": 0, "shuffle": False})]
    for side in ("queries", "keys"):
        torch.testing.assert_close(*(getattr(method, side)(picture) for method in methods))


def test_each_group_counts_into_the_running_statistics():
    method = built(norm_rows=4)
    method.embed(views(16))
    norms = {name: module for name, module in method.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name.split(".")[0] for name in norms} == {"encoder", "momentum_encoder"}
    assert all(norm.num_batches_tracked == 2 * 16 // 4 for norm in norms.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": 48}, "moco.queue is 48; allowed: a multiple of 32, the keys that join it in a step"),
        ({"queue": 24, "symmetric": False}, "moco.queue is 24; allowed: a multiple of 16"),
        ({"norm_rows": 1}, r"moco.norm_rows is 1; allowed: 0 .* at least 2 and a smaller .* divides batch_size, 16"),
        ({"norm_rows": 3}, "moco.norm_rows is 3"),
        ({"norm_rows": 16}, "moco.norm_rows is 16"),
        (
            {"norm_rows": 0},
            "moco.shuffle is True, which has no effect with norm_rows 0; allowed: norm_rows of at least 2",
        ),
        ({"head": "deep"}, "moco.head is 'deep'; allowed: 'linear', 'mlp'"),
        ({"temperature": 0}, "moco.temperature is 0"),
        ({"momentum": 1.5}, "moco.momentum is 1.5; allowed: a number at least 0 and at most 1"),
        ({"predictor": 3}, "unknown key variants.moco.predictor"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=words) as refusal:
        built(**options)
    assert "\n" not in str(refusal.value)


def test_groups_must_fit_into_micro_batches():
    params = replace(params_of("moco", norm_rows=4), micro_batch_size=4)
    with pytest.raises(UserError, match="moco.norm_rows is 4; .* divides micro_batch_size, 4"):
        build_method(params)
    build_method(replace(params, micro_batch_size=8))


@pytest.mark.parametrize(
    ("count", "shuffle", "words"),
    [
        (1, True, ""),
        (2, False, ""),
        (
            2,
            True,
            "norm_rows is 8 where each process takes 8 images of a batch; allowed: a smaller number that "
            "divides 8, because of shuffle; or use fewer processes",
        ),
        (
            4,
            False,
            "norm_rows is 8 where each process takes 4 images of a batch; allowed: 0, or a number that divides 4; ",
        ),
    ],
)
def test_the_share_of_each_process_is_whole_groups(count, shuffle, words, monkeypatch):
    """Two of them where keys change groups: in one group, the shuffle would change nothing."""
    params = params_of("moco", norm_rows=8, shuffle=shuffle)
    monkeypatch.setattr(processes, "world_size", lambda: count)
    for check in (
        lambda: try_method(params, 64, 2, count),
        lambda: Pretrainer(build_method(params), images(), params, CPU),
    ):
        with pytest.raises(UserError, match=words) if words else nullcontext():
            check()


@pytest.mark.parametrize(("variant", "held"), [("moco", 32), ("moco_v1", 64)])
def test_a_queue_of_more_images_than_there_are_is_refused(variant, held):
    run_of(variant, queue=64)
    with pytest.raises(
        UserError,
        match=f"variants.{variant}.queue is 64, keys of {held} images; allowed: keys of at "
        f"most the number of training images, {held - 1}",
    ):
        params = params_of(variant, queue=64)
        Pretrainer(build_method(params), images(held - 1), params, CPU)
