"""The training core: schedule, optimizers, determinism, checkpoints, resume."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pandas
import pytest
import torch
from torch import nn

from lib.core.checkpoint import LIBRARY, CheckpointStore, fingerprint, prune
from lib.core.loop import _Saves, pretrain
from lib.core.optimizers import LARS, build_optimizer
from lib.core.schedule import learning_rate
from lib.core.trainer import Pretrainer, check_batch
from lib.methods import build_method
from lib.params.pretraining import Optimizer
from lib.runtime.errors import UserError
from lib.runtime.progress import duration
from lib.runtime.seeds import generator
from tests.examples import CPU, ROOT, images, pretraining

# Random pixels keep nothing in a small crop; without crop, flip and jitter there is something to learn.
GENTLE = {"crop_scale_min": 0.9, "flip": 0.0, "grayscale": 0.0}


class Stopped(Exception):
    """Stands for a kill."""


def trainer(variant: str = "simclr", **changes) -> Pretrainer:
    params = pretraining(variant, **changes)
    torch.manual_seed(generator(params.seed, "initial weights").initial_seed())
    return Pretrainer(build_method(params), images(), params, CPU)


def train(folder, variant: str = "simclr", monitor=lambda method: 50.0, **changes) -> dict[str, torch.Tensor]:
    run = trainer(variant, **changes)
    store = CheckpointStore(variant, "key", root=folder)
    with store.held():
        pretrain(run, store, folder / "curve.csv", monitor)
    return run.method.state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_schedule_at_its_corners():
    assert learning_rate(0, 100, 10, 2.0, "constant") == pytest.approx(0.2)
    assert learning_rate(9, 100, 10, 2.0, "constant") == learning_rate(99, 100, 10, 2.0, "constant") == 2.0
    assert learning_rate(0, 100, 0, 2.0, "cosine") == 2.0
    assert learning_rate(10, 110, 10, 2.0, "cosine") == 2.0
    assert learning_rate(60, 110, 10, 2.0, "cosine") == pytest.approx(1.0)
    assert learning_rate(110, 110, 10, 2.0, "cosine") == pytest.approx(0.0)


def test_lars_moves_each_weight_by_its_formula():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = LARS(layer.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.02)
    sums = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(3):
        layer.zero_grad()
        layer(torch.full((2, 4), 1.0 + step)).square().sum().backward()
        slope = layer.weight.grad + 0.1 * weight
        sums[0] = 0.9 * sums[0] + 0.02 * weight.norm() / slope.norm() * slope
        sums[1] = 0.9 * sums[1] + layer.bias.grad
        optimizer.step()
        weight, bias = weight - 0.5 * sums[0], bias - 0.5 * sums[1]
        torch.testing.assert_close(layer.weight.detach(), weight)
        torch.testing.assert_close(layer.bias.detach(), bias)


def test_the_trust_of_lars_is_the_settings():
    optimizer = build_optimizer(nn.Linear(2, 2), Optimizer(name="lars", trust=0.02))
    assert optimizer.param_groups[0]["trust"] == 0.02


def test_checkpoints_of_short_epochs_cost_a_tenth_of_the_time(monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr("lib.core.loop.time.monotonic", lambda: now[0])

    class Store:
        def save(self, state):
            now[0] += 2.0
            saved.append(state)

    class Trainer:
        def state(self):
            return now[0]

    saves = _Saves(Store(), 1.0, lead=True)
    for _ in range(50):  # epochs of 4 s
        now[0] += 4.0
        if saves.worth_it():
            saves.save(Trainer())
    assert saved[:2] == [4.0, 30.0]  # the first costs 2 s, so the next comes after more than 20
    assert len(saved) == 1 + (200 - 4) // 24 and not saves.due()
    now[0] = 1000.0
    assert saves.due() and saves.worth_it()


@pytest.mark.parametrize("name", ["adam", "sgd", "lars"])
def test_every_optimiser_lowers_a_quadratic(name):
    torch.manual_seed(0)
    layer = nn.Linear(6, 6, bias=False)
    optimizer = build_optimizer(layer, Optimizer(name=name, lr={"adam": 0.05, "sgd": 0.05, "lars": 20.0}[name]))
    values = []
    for _ in range(30):
        value = layer.weight.square().sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


def test_one_seed_gives_one_model_and_another_seed_another(tmp_path):
    first, second, other = (train(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert same(first, second)
    assert not same(first, other)


def test_global_random_state_does_not_matter(tmp_path):
    first = train(tmp_path / "a")
    torch.manual_seed(12345)
    torch.rand(17)
    run = trainer()
    torch.rand(3)
    store = CheckpointStore("simclr", "key", root=tmp_path / "b")
    with store.held():
        pretrain(run, store, tmp_path / "b.csv", lambda method: torch.rand(1).item())
    assert same(first, run.method.state_dict())


def test_joint_with_gamma_zero_trains_to_simclrs_model(tmp_path):
    assert same(train(tmp_path / "a", "simclr"), train(tmp_path / "b", "joint", gamma=0.0))
    assert not same(train(tmp_path / "c", "simclr"), train(tmp_path / "d", "joint", gamma=0.1))


def test_the_curve_has_a_row_per_epoch_and_the_loss_falls(tmp_path):
    train(tmp_path, epochs=6, monitor__every=4, augment=GENTLE)
    curve = pandas.read_csv(tmp_path / "curve.csv")
    assert list(curve) == [
        "epoch",
        "loss",
        "nt_xent",
        "spread",
        "knn",
        "lr",
        "images_per_second",
        "seconds",
        "memory_gb",
        "device",
    ]
    assert list(curve.epoch) == [1, 2, 3, 4, 5, 6]
    assert list(curve.knn.notna()) == [False, False, False, True, False, True]
    assert curve.loss.iloc[-1] < curve.loss.iloc[0] < math.log(31) + 0.5
    assert (curve.loss == curve.nt_xent).all() and (curve.lr == 0.001).all()


@pytest.mark.parametrize("variant", ["simclr", "joint", "dual"])
@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resume_after_any_step_gives_the_same_model_and_curve(variant, stop, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", variant)
    steps = 0
    step = Pretrainer.step

    def stopping(self, *arguments):
        nonlocal steps
        if steps == stop:
            raise Stopped
        steps += 1
        return step(self, *arguments)

    monkeypatch.setattr("tests.test_core.CPU", CPU.__class__(**{**vars(CPU), "checkpoint_minutes": 0.0}))
    monkeypatch.setattr(Pretrainer, "step", stopping)
    with pytest.raises(Stopped):
        train(tmp_path / "parts", variant)
    monkeypatch.setattr(Pretrainer, "step", step)
    assert same(whole, train(tmp_path / "parts", variant))
    timing = ["images_per_second", "seconds", "memory_gb"]
    curves = [pandas.read_csv(tmp_path / name / "curve.csv").drop(columns=timing) for name in ("whole", "parts")]
    pandas.testing.assert_frame_equal(*curves, check_exact=True)


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch, capsys):
    first = train(tmp_path, "joint")
    curve = (tmp_path / "curve.csv").read_text()
    (tmp_path / "curve.csv").unlink()
    monkeypatch.setattr(Pretrainer, "step", None)
    assert same(first, train(tmp_path, "joint"))
    assert (tmp_path / "curve.csv").read_text() == curve
    assert "trained before with the same parameters, code and data" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*/*.pt")] == ["final.pt"]


def test_only_one_process_trains_a_variant(tmp_path):
    store = CheckpointStore("simclr", "key", root=tmp_path)
    command = (
        "from pathlib import Path; from lib.core.checkpoint import CheckpointStore; "
        f"store = CheckpointStore('simclr', 'key', root=Path({str(tmp_path)!r}))\n"
        "with store.held(): print(store.load())"
    )
    with store.held():
        other = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "another process trains this variant already; waiting for it\n"
        store.save({"value": 3})
    assert other.communicate(timeout=60)[0] == "{'value': 3}\n" and other.returncode == 0


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    store = CheckpointStore("simclr", "key", root=tmp_path)
    with store.held():
        store.save({"value": 1})
        store.save({"value": 2})
        assert store.load() == {"value": 2}
        for size in (0, 10, store.latest.stat().st_size - 5):
            with open(store.latest, "r+b") as file:
                file.truncate(size)
            assert store.load() == {"value": 1}
        assert "going on from the one before it" in capsys.readouterr().out
        store.previous.unlink()
        assert store.load() is None
    assert "training starts anew" in capsys.readouterr().out


def test_prune_spares_what_is_held_or_unfinished(tmp_path):
    finished, held, begun = (CheckpointStore(name, "key", root=tmp_path) for name in ("finished", "held", "begun"))
    for store in (finished, held, begun):
        with store.held():
            store.save({"value": 1, "optimizer": 2})
    for store in (finished, held):
        store.finish({"value": 2, "optimizer": 2})
    with held.held():
        assert prune(tmp_path) == [finished.folder]
        assert prune(tmp_path, unfinished=True) == [begun.folder]
    assert held.load() == {"value": 2}


def test_the_fingerprint_follows_parameters_data_and_code(tmp_path, monkeypatch):
    params = pretraining("simclr").resolved()
    first = fingerprint(params, "data")
    assert fingerprint(params, "data") == first
    assert fingerprint({**params, "epochs": 3}, "data") != first
    assert fingerprint(params, "other data") != first
    module = LIBRARY / "core" / "only_for_a_test.py"
    try:
        module.write_text("value = 1\n")
        monkeypatch.setitem(sys.modules, "lib.core.only_for_a_test", SimpleNamespace(__file__=str(module)))
        second = fingerprint(params, "data")
        module.write_text("value = 2\n")
        assert len({first, second, fingerprint(params, "data")}) == 3
    finally:
        module.unlink()
    monkeypatch.setitem(sys.modules, "lib.params.evaluation", None)
    monkeypatch.delitem(sys.modules, "lib.core.only_for_a_test")
    assert fingerprint(params, "data") == first


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="batch_size of simclr is 65; allowed: at most the number of"):
        trainer(batch_size=65)
    with pytest.raises(UserError, match="of simclr is 16; allowed with the machine setting processes 3: a multiple"):
        check_batch(pretraining("simclr"), 64, 3)


def test_draws_do_not_depend_on_the_split_of_the_batch():
    run = trainer()
    order = run.order(0)[0]
    draws = run.draws(0, 0)
    whole = run.views(draws, order, slice(0, 16))
    for view, part in zip(whole, run.views(draws, order, slice(8, 16))):
        torch.testing.assert_close(view[8:16], part)


def test_an_estimate_leaves_the_method_as_it_was():
    run = trainer()
    before = {name: value.clone() for name, value in run.method.state_dict().items()}
    assert run.estimate() > 0
    assert same(before, run.method.state_dict())
    assert all(weight.grad is None for weight in run.method.parameters())


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (600, "10 min"), (7200, "2.0 h"), (180_000, "2.1 days")])
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
