"""BatchNorm's running statistics at the end of a training: those of the training images, whatever came before."""

import pytest
import torch
from torch import nn

from lib.core.calibration import calibrate_batchnorm
from lib.core.loop import Monitor
from lib.core.trainer import Pretrainer
from tests.examples import trained, trainer


def calibrate(training: Pretrainer) -> None:
    seen = training.images, training.mean, training.std
    calibrate_batchnorm(training.method, *seen, training.params, training.machine)


def norms(module: nn.Module) -> dict[str, nn.Module]:
    return {name: norm for name, norm in module.named_modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)}


@pytest.mark.parametrize("variant", ["simclr", "kwta", "moco", "cmc"])
def test_the_statistics_are_the_mean_over_batches_of_one_pass(variant):
    training = trainer(variant, epochs=1)
    training.step(0, 0, training.order(0)[0])  # leaves no trace
    seen: dict[str, list[torch.Tensor]] = {}

    def remember(name):
        return lambda norm, inputs: seen.setdefault(name, []).append(inputs[0].detach().transpose(0, 1).flatten(1))

    hooks = [norm.register_forward_pre_hook(remember(name)) for name, norm in norms(training.method).items()]
    calibrate(training)
    for hook in hooks:
        hook.remove()
    assert seen and all(name.partition(".")[0] not in ("momentum_encoder", "momentum_projector") for name in seen)
    for name, inputs in seen.items():
        norm, mean, variance = norms(training.method)[name], 0, 0
        for rows in inputs:  # [units, values]
            mean, variance = mean + rows.mean(1) / len(inputs), variance + rows.var(1) / len(inputs)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)
        assert norm.momentum == 0.1


def test_nothing_but_statistics_changes_and_what_no_latent_uses_keeps_its_own():
    training = trainer("byol", epochs=1)
    training.step(0, 0, training.order(0)[0])
    before = {name: value.clone() for name, value in training.method.state_dict().items()}
    calibrate(training)
    changed = {name for name, value in training.method.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.rpartition(".")[2].startswith(("running", "num_batches")) for name in changed)
    assert not any(name.startswith(("predictor", "momentum")) for name in changed)


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_last_measurement_sees_the_network_that_is_kept(epochs, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    measured = []

    def measure(method):
        measured.append({name: value.clone() for name, value in method.state_dict().items()})
        return {"knn": 50.0}

    for calibrated in (True, False):
        training = trainer(epochs=epochs, calibrate_batchnorm=calibrated)
        trained(training, tmp_path / str(calibrated) / "curve.csv", Monitor({"knn": "{}"}, measure))
        assert all(torch.equal(value, measured[-1][name]) for name, value in training.method.state_dict().items())
    means = [state["encoder.bn1.running_mean"] for state in measured[-2:]]
    assert means[0].abs().max() > 0 and not torch.equal(*means)
