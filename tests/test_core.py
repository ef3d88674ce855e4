"""The training core: schedule, optimizers, determinism, the curve, checkpoints, resume."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas
import pytest
import torch
from torch import nn
from torchvision.transforms import functional as tv

from lib.core.checkpoint import LIBRARY, CheckpointStore, fingerprint, prune
from lib.core.loop import TIMES, Monitor
from lib.core.optimizers import LARS
from lib.core.schedule import learning_rate
from lib.core.trainer import Pretrainer
from lib.runtime.errors import UserError
from lib.runtime.progress import EpochLines, StepProgress, duration
from tests.examples import CPU, ROOT, pretraining, trained, trainer

SLOW = pytest.mark.slow
# Random pixels keep nothing in a small crop; without crop, flip and grayscale there is something to learn.
GENTLE = {"crop_scale_min": 0.9, "flip": 0.0, "grayscale": 0.0}


class Stopped(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def times_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def run(folder, training: Pretrainer, measure=lambda method: 50.0) -> dict[str, torch.Tensor]:
    return trained(training, folder / "curve.csv", Monitor({"knn": "{}"}, lambda method: {"knn": measure(method)}))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_schedule_at_its_corners():
    assert learning_rate(0, 100, 10, 2.0, "constant") == pytest.approx(0.2)
    assert learning_rate(9, 100, 10, 2.0, "constant") == learning_rate(99, 100, 10, 2.0, "constant") == 2.0
    assert learning_rate(0, 100, 0, 2.0, "cosine") == learning_rate(10, 110, 10, 2.0, "cosine") == 2.0
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
        gradient = layer.weight.grad + 0.1 * weight
        sums[0] = 0.9 * sums[0] + 0.02 * weight.norm() / gradient.norm() * gradient
        sums[1] = 0.9 * sums[1] + layer.bias.grad
        optimizer.step()
        weight, bias = weight - 0.5 * sums[0], bias - 0.5 * sums[1]
        torch.testing.assert_close([layer.weight.detach(), layer.bias.detach()], [weight, bias])


def test_each_view_has_its_recipe_and_the_first_is_as_it_is_without_a_second():
    one, two = trainer(), trainer()
    two.params = replace(two.params, augment_second=replace(two.params.augment, solarize=1.0))
    indices = one.order(0)[0]
    same, changed = (training.views(training.batch(0, 0, indices)) for training in (one, two))
    assert torch.equal(same[0], changed[0])
    pixels, solarized = (0.2 * views[1] + 0.4 for views in (same, changed))
    torch.testing.assert_close(solarized, tv.solarize(pixels, 0.5), rtol=0, atol=1e-5)
    assert (solarized - pixels).abs().max() > 0.5


def test_one_seed_gives_one_model_another_seed_another_and_a_finished_training_is_not_repeated(
    tmp_path, monkeypatch, capsys
):
    first, curve = run(tmp_path / "a", trainer()), tmp_path / "a/curve.csv"
    torch.rand(17)
    assert same(first, run(tmp_path / "b", trainer(), lambda method: torch.rand(1).item()))
    assert not same(first, run(tmp_path / "c", trainer(seed=1)))
    text = curve.read_text()
    curve.unlink()
    monkeypatch.setattr(Pretrainer, "step", None)
    assert same(first, run(tmp_path / "a", trainer())) and curve.read_text() == text
    assert "trained before with the same parameters, code and data" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("a/*/*.pt")] == ["final.pt"]


def test_the_loss_falls_and_the_curve_holds_no_clock_times(tmp_path):
    run(tmp_path, trainer(epochs=6, monitor={"every": 4}, augment=GENTLE))
    curve, times = pandas.read_csv(tmp_path / "curve.csv"), pandas.read_csv(tmp_path / ".times/curve.csv")
    parts = ["nt_xent", "contrastive_accuracy", "nt_xent_floor"]
    assert list(curve) == ["epoch", "loss", *parts, "embedding_std", "knn", "lr"]
    assert (curve["nt_xent"] > curve["nt_xent_floor"]).all() and curve["contrastive_accuracy"].between(0, 1).all()
    assert list(times) == ["epoch", *TIMES] and set(times.device) == {"cpu x1, 1 threads, fp32"}
    assert list(curve.epoch) == list(times.epoch) == [1, 2, 3, 4, 5, 6]
    assert list(curve.knn.notna()) == [False, False, False, True, False, True]
    assert curve.loss.iloc[-1] < curve.loss.iloc[0] < math.log(31) + 0.5
    assert (curve.loss == curve.nt_xent).all() and (curve.lr == 0.001).all()


def test_an_untrained_encoder_has_one_row_and_is_not_held_to_a_batch(tmp_path, capsys):
    raw = {"epochs": 0, "batch_size": 256, "calibrate_batchnorm": False}
    assert same(trainer(**raw).method.state_dict(), run(tmp_path, trainer(**raw)))
    (row,) = pandas.read_csv(tmp_path / "curve.csv").to_dict("records")
    assert (row["epoch"], row["knn"], row["lr"]) == (0, 50.0, 0.0) and math.isnan(row["loss"])
    assert "0 epochs, the encoder stays as it was drawn" in capsys.readouterr().out


@pytest.mark.parametrize(("variant", "stop"), [("simclr", 1), ("dual", 4), pytest.param("moco", 5, marks=SLOW)])
def test_a_resume_after_any_step_gives_the_same_model_and_curve(variant, stop, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", trainer(variant))
    step, done = Pretrainer.step, []

    def stopping(self, *arguments):
        done.append(arguments)
        if len(done) > stop:
            raise Stopped
        return step(self, *arguments)

    always = replace(CPU, checkpoint_minutes=0.0)
    monkeypatch.setattr(Pretrainer, "step", stopping)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", trainer(variant, always))
    monkeypatch.setattr(Pretrainer, "step", step)
    assert same(whole, run(tmp_path / "parts", trainer(variant, always)))
    assert (tmp_path / "whole/curve.csv").read_bytes() == (tmp_path / "parts/curve.csv").read_bytes()


def test_checkpoints_of_short_epochs_cost_a_tenth_of_the_time(tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr("lib.core.checkpoint.time.monotonic", lambda: now[0])

    def write(path, state):
        now[0] += 2.0
        saved.append(state)

    monkeypatch.setattr("lib.core.checkpoint._write", write)
    store = CheckpointStore("simclr", "key", root=tmp_path)
    for _ in range(50):  # epochs of 4 s
        now[0] += 4.0
        if store.due(1.0, epoch_ends=True):
            store.save(now[0])
    assert saved[:2] == [4.0, 30.0]  # the first costs 2 s, so the next comes after more than 20
    assert len(saved) == 1 + (200 - 4) // 24 and not store.due(1.0, epoch_ends=False)
    now[0] = 1000.0
    assert store.due(1.0, epoch_ends=False)


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


# What a power failure, a disk or a copy can do to a file.
DAMAGE = {
    "nothing left": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "almost whole": lambda content: content[:-5],
    "zeros within": lambda content: content[:700] + bytes(100) + content[800:],
    "a bit of a weight": lambda content: content[:-600] + bytes([content[-600] ^ 1]) + content[-599:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_takes_no_whole_ones_place(damage, tmp_path, capsys):
    store = CheckpointStore("simclr", "key", root=tmp_path)

    def loaded(file=None) -> float:
        if file:
            file.write_bytes(DAMAGE[damage](file.read_bytes()))
        return store.load()["value"][0].item()

    with store.held():
        for number in range(2):
            store.save({"value": torch.arange(200.0) + number})
        assert loaded() == 1.0 and loaded(store.latest) == 0.0
        assert f"checkpoint {store.latest} is damaged; going on from the one before it" in capsys.readouterr().out
        store.save({"value": torch.arange(200.0) + 2})
        assert loaded() == 2.0 and loaded(store.latest) == 0.0  # which no damaged one has replaced
        store.previous.write_bytes(DAMAGE[damage](store.previous.read_bytes()))
        assert store.load() is None
    assert capsys.readouterr().out.count("training starts anew") == 2


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
    params = json.loads(json.dumps(pretraining("simclr").as_json()))
    first = fingerprint(params, "data")
    assert fingerprint(params, "data") == first
    assert len({first, fingerprint({**params, "epochs": 3}, "data"), fingerprint(params, "other data")}) == 3
    monkeypatch.setattr("lib.core.checkpoint.LIBRARY", tmp_path)
    module = tmp_path / "module.py"
    monkeypatch.setitem(sys.modules, "only_for_a_test", SimpleNamespace(__file__=str(module)))
    digests = set()
    for text in ("value = 1\n", "value = 2\n"):
        module.write_text(text)
        digests.add(fingerprint(params, "data"))
    assert len(digests) == 2 and LIBRARY == ROOT / "lib"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 65}, "batch_size of simclr is 65; allowed: at most the number of training images, 64"),
        ({"micro_batch_size": 16}, "16; allowed: 0 .* divides .* share of the batch, 16"),
        ({"micro_batch_size": 3}, "3; allowed: 0 .* divides .* share of the batch, 16"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        trainer(**changes)


def test_progress_estimates_from_the_second_step_in_the_words_that_people_use(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("lib.runtime.progress.time.monotonic", lambda: now[0])
    with StepProgress("pretrain x", 12) as progress:
        for seconds in (50.0, 60.0, 61.0):  # the first step sets up, and counts for nothing
            now[0] += seconds
            progress.advance()
        progress.note("epoch 1")
    assert capsys.readouterr().out.splitlines() == [
        "pretrain x: step 2 of 12, about 10 min left",
        "pretrain x: step 3 of 12, about 9 min left",
        "pretrain x: epoch 1, about 9 min left",
    ]
    with StepProgress("reading", 100) as progress:
        for picture in range(1000):
            now[0] += 0.1
            progress.reach((picture + 1) / 1000)
    assert progress.done == 100
    assert capsys.readouterr().out.splitlines() == [
        "reading: step 2 of 100, about 98 s left",
        "reading: step 63 of 100, about 37 s left",
    ]
    with StepProgress("unpacking", 100) as progress:
        for share in (0.4, 0.41, 0.43):  # one large file first, which counts for nothing
            now[0] += 2.0
            progress.reach(share)
    assert capsys.readouterr().out == "unpacking: step 41 of 100, about 118 s left\n"
    lines = EpochLines("probe", 50)
    for epoch in range(1, 51):
        now[0] += 1.2
        lines.epoch(epoch, loss=0.5)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 10 and shown[0] == "probe: epoch 5/50, loss 0.5, 6 s, 54 s left"

    assert [duration(s) for s in (45, 600, 7200, 180_000)] == ["45 s", "10 min", "2.0 h", "2.1 days"]
