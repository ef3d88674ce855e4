"""params.yaml: a bad one is refused in one line that names the key, the value and what is allowed."""

import os
import subprocess
import sys

import pytest
import yaml

from lib.methods import check_method
from lib.params.check import check_params
from lib.params.evaluation import Knn, Linear, Tsne
from lib.params.pretraining import Augment, Dataset, Monitor, Optimizer, _Shared, pretraining_params
from lib.params.spec import Loader, load_yaml, parse
from lib.runtime.errors import UserError
from tests.examples import ROOT, params_file, study_params


def changed(path: str, value: object) -> dict:
    raw = study_params()
    target = raw
    for name in path.split(".")[:-1]:
        target = target[name]
    target[path.split(".")[-1]] = value
    return raw


def test_the_study_preset_holds_the_defaults_of_the_code():
    raw = study_params()
    assert parse(Dataset, {key: raw[key] for key in Dataset.__dataclass_fields__}) == Dataset()
    assert parse(_Shared, {key: raw[key] for key in _Shared.__dataclass_fields__}) == _Shared()
    for name, kind in {
        "optimizer": Optimizer,
        "augment": Augment,
        "monitor": Monitor,
        "linear": Linear,
        "knn": Knn,
        "tsne": Tsne,
    }.items():
        assert set(raw[name]) == set(kind.__dataclass_fields__), name
        assert parse(kind, raw[name]) == kind()


def test_the_study_preset_is_the_study():
    raw = study_params()
    study = {"dataset": "cifar10", "encoder": "resnet50", "batch_size": 256, "epochs": 100, "gamma": 0.01}
    assert {key: raw[key] for key in study} == study
    assert raw["optimizer"] == {
        "name": "adam",
        "lr": 1e-3,
        "weight_decay": 1e-6,
        "momentum": 0.9,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "trust": 0.001,
    }
    assert raw["linear"]["study_epochs"] == 50
    assert all(raw["variants"][name]["temperature"] == 0.5 for name in ("simclr", "joint", "dual"))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("gama", 0.1, ["unknown key gama", "gamma"]),
        (
            "optimizer.trust",
            0.02,
            ["optimizer.trust is 0.02, which has no effect with adam", "set optimizer.name to lars"],
        ),
        ("optimizer.rate", 0.1, ["unknown key optimizer.rate", "lr"]),
        ("batch_size", -256, ["batch_size is -256", "at least 2"]),
        ("batch_size", "256", ["batch_size is '256'", "a whole number"]),
        ("batch_size", 25.6, ["batch_size is 25.6", "a whole number"]),
        ("batch_size", True, ["batch_size is True", "a whole number"]),
        ("epochs", -1, ["epochs is -1", "at least 0"]),
        ("gamma", -0.1, ["gamma is -0.1", "at least 0"]),
        ("gamma", float("nan"), ["gamma is nan", "a number"]),
        ("gamma", None, ["gamma is None", "a number"]),
        ("dataset", "cifar", ["dataset is 'cifar'", "'cifar10'"]),
        ("dataset", "images", ["images_path is empty"]),
        ("encoder", "resnet51", ["encoder is 'resnet51'", "resnet50"]),
        ("encoder", "resnet", ["encoder is 'resnet'", "resnet50"]),
        ("optimizer.name", "adagrad", ["optimizer.name is 'adagrad'", "'lars'"]),
        ("optimizer.warmup_epochs", 101.0, ["optimizer.warmup_epochs is 101.0", "at most epochs (100)"]),
        ("optimizer", 3, ["optimizer", "block"]),
        ("augment.crop_scale_max", 0.01, ["augment.crop_scale_min is 0.08"]),
        ("variants", {}, ["variants must be a block"]),
        ("variants.joint.method", "joined", ["variants.joint.method is 'joined'", "simclr"]),
        ("variants.joint.method", "base", ["variants.joint.method is 'base'", "simclr"]),
        ("variants.joint.method", "export", ["variants.joint.method is 'export'", "simclr"]),
        ("variants", {"du.al": {}}, ["variants.du.al is not a usable name"]),
        ("variants.joint.watch", {"loss": "ntxent"}, ["variants.joint.watch.term is missing", "a file in lib/losses"]),
        ("variants.joint.watch.part", 3, ["variants.joint.watch.part is 3", "the path of a file below lib"]),
        ("transfer", "x", ["transfer is 'x'", "block of keys and values (batch_size, double_softmax, epochs, lr, "]),
        ("transfer.variant", [], ["unknown key transfer.variant; allowed here: ", "source, variants; rename"]),
        ("variants.--help", {}, ["variants.--help is not a usable name"]),
        ("linear.mode", "probing", ["linear.mode is 'probing'", "'finetune'"]),
        ("knn.temperature", 0, ["knn.temperature is 0", "above 0"]),
        ("tsne.points", 1e4, ["tsne.points is 10000.0", "a whole number"]),
    ],
)
def test_a_bad_value_is_refused_in_one_line(path, value, words):
    with pytest.raises(UserError) as refusal:
        check_params(changed(path, value))
    text = str(refusal.value)
    assert "\n" not in text and text.startswith("params.yaml")
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0}, "variants.simclr.temperature is 0; allowed: a number above 0"),
        ({"tau": 0.1}, "unknown key variants.simclr.tau; allowed here: projector_hidden, projector_out, temperature"),
    ],
)
def test_an_option_that_the_method_does_not_have_is_refused(change, words):
    raw = params_file()
    raw["variants"]["simclr"].update(change)
    with pytest.raises(UserError, match=words):
        check_method(pretraining_params(raw, "simclr"))


def test_a_number_in_scientific_form_is_a_number():
    assert yaml.safe_load("1e-4") == "1e-4"  # what PyYAML makes of it alone

    found = yaml.load("a: 1e-4\nb: 1E5\nc: -.5e-3\nd: 1.e2\n", Loader=Loader)
    assert found == {"a": 1e-4, "b": 1e5, "c": -5e-4, "d": 100.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("!!python/object/apply:os.system ['touch owned']", "is not valid YAML"),
        ("a: [1, 2", "is not valid YAML"),
        ("- 1", "must hold keys and values"),
        ("", "must hold keys and values"),
    ],
)
def test_text_that_is_not_a_mapping_is_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as refusal:
        load_yaml(tmp_path / "params.yaml")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(("stage", "arguments"), [("download", []), ("pretrain", ["joint"]), ("results", [])])
def test_a_stage_ends_with_one_line_and_no_traceback(stage, arguments, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**study_params(), "gamma": "many"}))
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *arguments],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert done.stderr == "error: params.yaml: gamma is 'many'; allowed: a number at least 0\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]


def test_an_unknown_variant_is_refused():
    with pytest.raises(UserError, match="no variant 'triple'; variants: simclr"):
        pretraining_params(params_file(), "triple")
