"""Numbers that break stop a training before they are learned; embeddings that collapse are reported meanwhile."""

import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from lib.core import health
from lib.core.checkpoint import CheckpointStore
from lib.core.health import COLLAPSED, Guard, embedding_std
from lib.runtime.errors import UserError
from tests.examples import ROOT, directions, trainer
from tests.faults.refusals import refused
from tests.test_core import run, same, times_of_their_own  # noqa: F401 (a fixture for every test here)


def break_at(training, step: int, what: str) -> dict[str, torch.Tensor]:
    """Let loss or gradient be nan in one step; returns the parameters from before that step, once it was reached."""
    before, plain = {}, training.forward_backward

    def forward_backward(epoch, number, indices):
        values = plain(epoch, number, indices)
        if epoch * training.steps_per_epoch + number == step:
            before.update({name: weight.detach().clone() for name, weight in training.method.named_parameters()})
            if what == "loss":
                values[0] = torch.nan
            else:
                next(training.method.parameters()).grad[0] = torch.inf
        return values

    training.forward_backward = forward_backward
    return before


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("name", ["adam", "sgd", "lars"])
def test_what_is_not_finite_stops_the_step_before_the_update(tmp_path, name, what):
    training = trainer(optimizer={"name": name})
    before = break_at(training, 2, what)
    with pytest.raises(UserError) as error:
        run(tmp_path, training)
    assert str(error.value).startswith(
        "simclr: loss or gradient is no longer finite in epoch 1, step 3 of 4, "
        "at learning rate 0.001; the step was not made, there is no checkpoint yet"
    )
    assert same(before, {key: weight.detach() for key, weight in training.method.named_parameters()})


@pytest.mark.parametrize(
    ("step", "advice"), [(0, "; raise the variant's temperature or lower its weights"), (2, "; lower optimizer.lr")]
)
def test_before_the_first_update_no_learning_rate_is_blamed(tmp_path, step, advice):
    training = trainer()
    break_at(training, step, "loss")
    refused(lambda: run(tmp_path, training), advice, "or set the machine setting precision to fp32")


def test_the_last_good_checkpoint_is_named_and_whole(tmp_path):
    training = trainer()
    break_at(training, 5, "loss")
    with pytest.raises(UserError, match=r"epoch 2, step 2 of 4, .* the checkpoint before it is .*latest\.pt"):
        run(tmp_path, training)
    again = trainer()
    again.restore(CheckpointStore("simclr", "key", root=tmp_path).load())
    assert again.position.epoch == 1 and all(weight.isfinite().all() for weight in again.method.parameters())


def test_the_guard_remembers_the_first_step_and_holds_back_all_later_ones():
    guard, fine = Guard("cpu"), [torch.ones(2)]
    assert guard.watch(0, torch.tensor(1.0), fine).item() == 0 and guard.broken_step() is None
    assert guard.watch(1, torch.tensor(1.0), [torch.tensor([1.0, torch.nan])]).item() == 1
    assert guard.watch(2, torch.tensor(1.0), fine).item() == 1
    assert guard.broken_step() == 1


def test_the_embedding_std_at_its_corners():
    assert embedding_std(torch.ones(5, 3)).item() == 0 and embedding_std(torch.zeros(5, 3)).item() == 0
    assert embedding_std(torch.cat([torch.eye(4), -torch.eye(4)])).item() == pytest.approx(1)
    rows = nn.functional.normalize(directions(50, 6) + 0.4, dim=1)
    assert embedding_std(rows).item() ** 2 == pytest.approx(1 - (rows @ rows.T).mean().item(), abs=1e-5)
    assert embedding_std(7 * rows).item() == pytest.approx(embedding_std(rows).item(), abs=1e-6)


def test_collapse_of_what_a_method_has_watched_is_reported_where_it_begins_and_at_the_end(tmp_path, capsys):
    training = trainer()
    run(tmp_path / "healthy", training)
    assert "collapse" not in capsys.readouterr().out
    assert all(row["embedding_std"] > COLLAPSED for row in training.position.history)
    training = trainer(epochs=4)
    training.method.watched = lambda embeddings: {"all alike": torch.ones(4, 3)}
    run(tmp_path / "watched", training)
    lines = [line for line in capsys.readouterr().out.splitlines() if "collapse" in line]
    assert "collapse: the embeddings all alike of all images are nearly the same" in lines[0]
    assert "embedding_std 0.000, below 0.05" in lines[0]
    assert len(lines) == 2
    assert all(row["embedding_std"] < 1e-3 for row in training.position.history)


HANGS = """
import ctypes, sys
from lib.core import health
from tests.test_core import run, trainer
from pathlib import Path

health.STUCK_SECONDS, health.SLOWER = 5, 1
training = trainer(epochs=3)
plain = training.step

def step(epoch, number, indices):
    if (epoch, number) == (1, 3):
        print("stuck", flush=True)
        ctypes.PyDLL(None).sleep(60)  # keeps the interpreter's lock, as a deadlock within torch does
    return plain(epoch, number, indices)

training.step = step
run(Path(sys.argv[1]), training)
"""


def test_a_training_without_a_step_says_where_it_stands_and_ends(tmp_path):
    command = [sys.executable, "-c", HANGS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "stuck" in done.stdout and "epoch 1 of 3" in done.stdout
    assert done.stderr.startswith("Timeout (0:00:") and "loop.py" in done.stderr and "in _epoch" in done.stderr


def test_the_watchdog_rests_in_first_steps_and_between_epochs_and_watches_the_others(tmp_path, monkeypatch):
    training, timers, watched = trainer(epochs=2), [], []
    monkeypatch.setattr(health.faulthandler, "dump_traceback_later", lambda seconds, **_: timers.append(seconds))
    monkeypatch.setattr(health.faulthandler, "cancel_dump_traceback_later", timers.clear)
    plain = training.step

    def step(epoch, number, indices):
        watched.append(bool(timers))
        return plain(epoch, number, indices)

    training.step = step
    run(tmp_path, training, lambda method: watched.append(bool(timers)) or 50.0)
    assert watched == [False, False, True, True, False] * 2 and not timers


def test_a_training_that_a_terminal_stops_is_not_ended(monkeypatch):
    signals = []
    monkeypatch.setattr(health.os, "kill", lambda process, kind: signals.append(kind))
    with health.Watchdog() as watchdog:
        watchdog.stepped(), watchdog.stepped()
        signal.raise_signal(signal.SIGTSTP)
        assert signals == [signal.SIGSTOP] and not watchdog.last
    assert signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL


def test_a_step_that_was_slow_makes_the_limit_longer_and_a_debugger_stops_the_watch(monkeypatch):
    times, timers = iter([1.0, 2.0, 32.0, 33.0]), []
    monkeypatch.setattr(health.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(health.faulthandler, "dump_traceback_later", lambda seconds, **_: timers.append(seconds))
    with health.Watchdog() as watchdog:
        for _ in range(4):
            watchdog.stepped()
    assert timers == [120.0, 600.0]
    monkeypatch.setattr(health.sys, "gettrace", lambda: print)
    monkeypatch.setattr(health.time, "monotonic", lambda: 1.0)
    with health.Watchdog() as watchdog:
        watchdog.stepped(), watchdog.stepped()
    assert timers == [120.0, 600.0]
