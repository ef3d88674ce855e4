"""Two views at the same time, each by a thread of its own, against one after the other."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lib.core.trainer import Pretrainer
from lib.core.view_threads import ViewThreads, threads_for_views
from lib.errors import UserError
from lib.methods import build_method
from tests.examples import CPU, FORMS, images, params_file, pretraining

ONE, TWO = replace(CPU, threads=1), replace(CPU, threads=2)
TRAINED = [name for name, block in params_file()["variants"].items() if block.get("epochs", 1)] + list(FORMS)


def apart(variant: str) -> bool:
    with torch.device("meta"):
        return build_method(pretraining(variant)).views_apart


APART = [name for name in TRAINED if apart(name)]


def run_of(variant: str, machine=TWO, **changes: Any) -> Pretrainer:
    torch.manual_seed(0)
    params = pretraining(variant, **changes)
    return Pretrainer(build_method(params), images(), params, machine)


def in_turn_and_at_once(variant: str, precision: str = "fp32") -> list[Pretrainer]:
    runs = [run_of(variant, replace(machine, precision=precision)) for machine in (ONE, TWO)]
    assert runs[0].view_threads is None and runs[1].view_threads is not None
    return runs


def same_state(first: Pretrainer, second: Pretrainer) -> bool:
    states = [run.method.state_dict() for run in (first, second)]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def disturbed(run: Pretrainer, disturb) -> Pretrainer:
    """``disturb(method, call)`` before every view's pass; calls are counted from 0, the try too."""
    kind, calls = type(run.method), []

    class Disturbed(kind):
        def embed_view(self, view):
            calls.append(None)
            disturb(self, len(calls) - 1)
            return super().embed_view(view)

    run.method.__class__ = Disturbed
    return run


@pytest.fixture(autouse=True)
def one_thread_for_the_rest():
    """Kernels are then cut up alike, whether views take turns or not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    now = torch.get_num_threads()
    torch.set_num_threads(before)
    assert now == 1


def test_the_variants_that_it_is_for():
    assert {"simclr", "joint", "dual", "vicreg", "barlow_twins", "byol", "kwta"} <= set(APART)
    assert not {"supervised", "moco", "cmc", "cpc", "clapp", "patch_filters"} & set(APART)


def compare(runs: list[Pretrainer], number: int) -> None:
    """A step's values, gradient and buffers. What rounds otherwise is made equal, so that it does not add up."""
    values = [run.gradient(0, number, run.order(0)[number]) for run in runs]
    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-7)
    for (name, one), other in zip(runs[0].method.named_parameters(), runs[1].method.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-6 * one.grad.abs().max().item())
            assert other.grad.stride() == other.stride(), name
            other.grad.copy_(one.grad)
    for run in runs:
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.method.after_step(number, 8)
    for (name, one), other in zip(runs[0].method.named_buffers(), runs[1].method.buffers(), strict=True):
        scale = one.abs().max().item() if one.numel() else 0
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6 * scale, msg=lambda text: f"{name}: {text}")
        other.copy_(one)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", APART)
def test_loss_gradient_and_statistics_are_those_of_views_in_turn(variant, precision):
    """Three steps, so that statistics have a past and buffers that methods change between steps are seen."""
    runs = in_turn_and_at_once(variant, precision)
    for number in range(3):
        compare(runs, number)


def test_gradients_add_up_and_slopes_of_parameters_in_the_loss_stay():
    runs = in_turn_and_at_once("simclr")
    for run in runs:
        loss, weight = run.method.loss, run.method.projector[0].weight
        run.method.loss = lambda embeddings, loss=loss, weight=weight: (
            (given := loss(embeddings))[0] + weight.square().sum(), given[1])
        run.gradient(0, 1, run.order(0)[1])
    compare(runs, 0)


def test_a_loss_of_one_view_alone():
    runs = in_turn_and_at_once("simclr")
    for run in runs:
        run.method.loss = lambda embeddings: (embeddings["z_a"][:, 0].sum(), {})
    compare(runs, 0)


def test_a_norm_that_is_used_twice_in_a_view_counts_twice():
    def twice(method, call):
        for norm in method.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm(torch.full((4, norm.num_features), 2.0).cumsum(0))

    runs = [disturbed(run, twice) for run in in_turn_and_at_once("simclr")]
    for number in range(2):
        compare(runs, number)
    assert runs[1].method.projector[1].num_batches_tracked == 8


@pytest.mark.parametrize("kinds", [(nn.Module,), (nn.BatchNorm2d,)], ids=["all", "the encoder's norms"])
def test_norms_that_do_not_train_keep_their_statistics_and_use_them(kinds):
    runs = in_turn_and_at_once("byol")
    for number in range(3):
        compare(runs, number)
        if number == 0:
            for run in runs:
                for module in run.method.modules():
                    if isinstance(module, kinds):
                        module.train(False)


def test_views_are_at_the_same_time_both_ways_by_half_of_the_threads_in_the_machines_precision():
    both = threading.Barrier(2)
    ahead, back = [], []

    class Meet(torch.autograd.Function):
        @staticmethod
        def forward(context, rows):
            return rows.clone()

        @staticmethod
        def backward(context, slope):
            both.wait(timeout=60)
            back.append(torch.get_num_threads())
            return slope

    torch.set_num_threads(4)
    run = run_of("simclr", replace(TWO, threads=4, precision="bf16"))
    embed = type(run.method).embed_view

    class Meeting(type(run.method)):
        def embed_view(self, view):
            if torch.is_grad_enabled():  # not when it is tried
                both.wait(timeout=60)
            found = embed(self, view)
            ahead.append((torch.is_autocast_enabled("cpu"), torch.get_num_threads()))
            return {name: Meet.apply(rows) for name, rows in found.items()}

    run.method.__class__ = Meeting
    for number in range(2):
        run.step(0, number, run.order(0)[number])
        torch.set_num_threads(3)  # what is set later is not theirs
    torch.set_num_threads(1)
    assert ahead == [(True, 2)] * 5 and back == [2] * 4


@pytest.mark.parametrize("variant, precision, threads", [
    *((variant, "fp32", 2) for variant in APART), ("simclr", "bf16", 2), ("dual", "bf16", 4), ("byol", "fp32", 4)])
def test_it_is_the_same_every_time(variant, precision, threads):
    torch.set_num_threads(threads)
    runs = [run_of(variant, replace(TWO, threads=threads, precision=precision)) for _ in range(2)]
    for run in runs:
        for number in range(3):
            run.step(0, number, run.order(0)[number])
        assert run.view_threads.share == threads // 2
    torch.set_num_threads(1)
    assert same_state(*runs)


def test_a_training_goes_on_from_its_state_as_if_nothing_had_been():
    whole, first, second = (run_of("kwta") for _ in range(3))
    for number in range(4):
        whole.step(0, number, whole.order(0)[number])
    for number in range(2):
        first.step(0, number, first.order(0)[number])
    second.restore(first.state())
    for number in (2, 3):
        second.step(0, number, second.order(0)[number])
    assert same_state(whole, second)
    assert second.state()["method"].keys() == run_of("kwta", ONE).state()["method"].keys()


def test_an_estimate_leaves_no_trace():
    plain, estimated = run_of("simclr"), run_of("simclr")
    assert estimated.estimate() > 0
    for run in (plain, estimated):
        run.step(0, 0, run.order(0)[0])
    assert same_state(plain, estimated)


@pytest.mark.parametrize("machine, changes", [
    (ONE, {}), (replace(TWO, threads=3), {}), (replace(TWO, compile="on"), {}), (TWO, {"micro_batch_size": 8}),
], ids=["one thread", "three", "compiled", "micro-batches"])
def test_elsewhere_views_take_turns(machine, changes):
    assert run_of("simclr", machine, **changes).view_threads is None


def test_a_method_that_embeds_otherwise_takes_turns():
    method = build_method(pretraining("simclr"))
    assert threads_for_views(method, TWO) is not None
    method.embed = lambda views: {}
    assert threads_for_views(method, TWO) is None


def test_a_mean_of_all_batches_has_an_order():
    method = build_method(pretraining("simclr"))
    next(module for module in method.modules() if isinstance(module, nn.BatchNorm2d)).momentum = None
    assert threads_for_views(method, TWO) is None


def draw(method, call):
    torch.rand(())


def rebind(method, call):
    method.calls = call


def replace_a_buffer(method, call):
    method.usage = 0.9 * method.usage


def change_a_buffer(method, call):
    method.usage.mul_(0.9)


@torch.no_grad()
def change_a_weight(method, call):
    method.encoder.bn1.bias.add_(0.01)  # not kept for the backward pass, which would refuse it


BESIDE = [(draw, "draws random numbers"), (rebind, "sets attributes"), (replace_a_buffer, "sets attributes"),
          (change_a_buffer, "changes buffers or parameters"), (change_a_weight, "changes buffers or parameters")]


@pytest.mark.parametrize("disturb, words", BESIDE)
def test_what_does_more_than_embed_takes_turns_and_says_so_once(disturb, words, capsys):
    """Nothing is left of the try: the training is that of one thread, bit for bit."""
    plain, other = (disturbed(run, disturb) for run in in_turn_and_at_once("kwta"))
    for run in (plain, other):
        run.estimate()
        for number in range(2):
            run.step(0, number, run.order(0)[number])
    assert other.view_threads is None and same_state(plain, other)
    assert capsys.readouterr().out == f"kwta: it {words} while it embeds, so that its views take turns\n"


@pytest.mark.parametrize("disturb, words", BESIDE)
def test_what_begins_later_is_refused(disturb, words):
    run = disturbed(run_of("kwta"), lambda method, call: disturb(method, call) if call >= 3 else None)
    run.step(0, 0, run.order(0)[0])
    with pytest.raises(UserError, match=f"{words} in embed_view, which it did not in the first step; allowed: "):
        run.step(0, 1, run.order(0)[1])


@pytest.mark.parametrize("view", [0, 1])
def test_an_error_in_a_view_waits_for_the_other(view):
    failing, done = [], threading.Event()

    def fail(method, call):
        if failing and (method is run.method) == (view == 0):
            raise ValueError(f"view {view}")
        if failing:
            time.sleep(0.5)
            done.set()

    run = disturbed(run_of("simclr"), fail)
    run.step(0, 0, run.order(0)[0])
    failing.append(True)
    with pytest.raises(ValueError, match=f"view {view}"):
        run.step(0, 1, run.order(0)[1])
    assert done.is_set()
    failing.clear()
    run.step(0, 1, run.order(0)[1])


def test_a_change_of_the_method_reaches_both_views():
    """A buffer put anew, a parameter at the same address, a hook, what evaluation leaves behind."""
    runs = in_turn_and_at_once("kwta")
    changes = (lambda method: method.eval().train(), lambda method: setattr(method, "count", torch.tensor(3)),
               lambda method: setattr(method.layer, "weight", nn.Parameter(method.layer.weight.data)),
               lambda method: method.layer.register_forward_hook(lambda module, given, rows: rows * 1.5))
    for number, change in enumerate(changes):
        for run in runs:
            change(run.method)
        compare(runs, number)


def test_threads_made_later_have_the_number_that_was_set():
    torch.set_num_threads(3)
    ViewThreads(build_method(pretraining("simclr")), 4)
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    torch.set_num_threads(1)
    assert found == [3]
