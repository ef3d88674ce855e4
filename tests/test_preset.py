"""Presets are complete files; what they replace is never lost."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lib.methods import build_method, typed_options
from lib.methods.base import count_parameters
from lib.params.experiment import read_experiment
from lib.params.spec import load_yaml, read_yaml
from lib.preset import apply_preset, differences, presets
from lib.report.compare import floor
from lib.report.dose import relative_pull
from tests.examples import ROOT
from tests.faults.refusals import refused

PRESETS = ROOT / "presets"


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text((PRESETS / "study.yaml").read_text())
    return path


def test_a_preset_is_copied_byte_for_byte_and_what_differs_is_said(params):
    lines = apply_preset("demo", [], params)
    assert params.read_text() == (PRESETS / "demo.yaml").read_text()
    assert "dataset cifar10 -> digits" in lines and "encoder resnet50 -> small" in lines
    assert apply_preset("demo", [], params) == ["no change"]
    assert not (params.parent / "params.yaml.bak").exists()


def test_what_was_no_preset_is_kept(params):
    own = params.read_text().replace("gamma: 0.01", "gamma: 0.3")
    params.write_text(own)
    apply_preset("cpu", [], params)
    assert (params.parent / "params.yaml.bak").read_text() == own
    apply_preset("cpu", ["epochs=1"], params)
    assert apply_preset("demo", [], params)[-1].endswith("is kept as params.yaml.bak1")
    params.write_text(own)
    assert apply_preset("demo", [], params)[-1].endswith("is kept as params.yaml.bak"), "the same is kept once"
    assert (params.parent / "params.yaml.bak").read_text() == own
    assert load_yaml(params.parent / "params.yaml.bak1")["epochs"] == 1


@pytest.mark.parametrize("broken", [b"gamma: [1", b"\xff\xfe", b"- a list"])
def test_a_broken_file_is_replaced_and_kept(params, broken):
    params.write_bytes(broken)
    lines = apply_preset("demo", [], params)
    assert "params.yaml" in lines[0] and lines[1].endswith("is kept as params.yaml.bak")
    assert (params.parent / "params.yaml.bak").read_bytes() == broken
    assert params.read_bytes() == (PRESETS / "demo.yaml").read_bytes()


def test_settings_change_values_may_add_a_variants_option_and_keep_comments(params):
    settings = ["gamma=1e-4", "optimizer.lr=0.5", "transfer.variants=[simclr]", "variants.simclr.seed=3"]
    apply_preset("study", settings, params)
    found = load_yaml(params)
    assert (found["gamma"], found["optimizer"]["lr"], found["transfer"]["variants"]) == (1e-4, 0.5, ["simclr"])
    assert found["variants"]["simclr"] == {"method": "simclr", "seed": 3}
    texts = [path.read_text().splitlines() for path in (PRESETS / "study.yaml", params)]
    before, after = ([line for line in text if line.lstrip().startswith("#")] for text in texts)
    assert before == after


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["gamma"], "setting 'gamma' is not understood"),
        (["gamme=1"], "no key gamme (did you mean gamma?)"),
        (["optimizer.rate=1"], "no key optimizer.rate"),
        (["gamma=x"], "gamma is 'x'; allowed: a number"),
        (["gamma=[1"], "is not valid YAML"),
        (["linear=[]"], "linear is a block of mode, "),
    ],
)
def test_a_refused_setting_leaves_the_file_as_it_was(params, settings, words):
    before = params.read_text()
    refused(lambda: apply_preset("demo", settings, params), words)
    assert params.read_text() == before


def test_an_unknown_preset_is_refused(params):
    words = "there is no preset 'cup'; presets: all, codes, cpu, demo, hypothesis, pilot, study"
    refused(lambda: apply_preset("cup", [], params), words)


def test_every_preset_says_what_it_is_for_and_names_the_same_shared_keys():
    keys = [[key for key in read_yaml(text, name) if key != "variants"] for name, text in presets().items()]
    assert len(keys) == 7 and all(each == keys[0] for each in keys)
    assert all(text.splitlines()[0].endswith(".") for text in presets().values())


DISTANCES = {0.5: 8.9, 0.2: 11.2}  # of the two views of 256 images, by temperature


@pytest.mark.parametrize("preset", ["study", "cpu", "all"])
def test_terms_have_the_dose_of_the_study_at_any_temperature(preset):
    variants = read_experiment(PRESETS / f"{preset}.yaml").variants.values()
    doses = []
    for params in variants:
        options = typed_options(params)
        if params.epochs and getattr(options, "term", "none") == "pull":
            distance = DISTANCES[options.temperature]
            doses.append(relative_pull("pull", params.gamma, params.batch_size, options.temperature, distance))
    assert len(doses) > 1 and doses == pytest.approx([14.4] * len(doses), abs=0.1)


@pytest.mark.parametrize("preset", ["all", "codes"])
def test_every_main_latent_has_a_floor_of_its_own_kind_beside_it(preset):
    """As tables find them: from the network and the latents that each variant builds."""
    records = []
    for params in read_experiment(PRESETS / f"{preset}.yaml").variants.values():
        method = build_method(params).eval()
        with torch.no_grad():
            latents = method.latents(torch.zeros(1, 3, 32, 32))
        shared = {"space": "latent", "top1": 10.0}
        rows = [{"latent": name, "width": values.shape[1], **shared} for name, values in latents.items()]
        network = (method.encoder.name, count_parameters(method.encoder), params.calibrate_batchnorm)
        records.append(SimpleNamespace(variant=params.variant, pretraining=params, network=network, rows=rows))
    groups = {record.variant: [record] for record in records}
    trained = [record for record in records if record.pretraining.epochs]
    assert [record.variant for record in trained if floor(record, record.rows[0], groups) is None] == []


def test_the_classifier_stands_beside_one_with_the_views_of_classifiers():
    for preset in ("cpu", "all"):
        variants = read_experiment(PRESETS / f"{preset}.yaml").variants
        usual, same = variants["supervised_crop_flip"].augment, variants["supervised"].augment
        assert (usual.jitter, usual.grayscale) == (0, 0) and same == variants["simclr"].augment
        assert replace(usual, jitter=same.jitter, grayscale=same.grayscale) == same


def test_differences_are_told_by_key():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 5, "b": {"c": 2}, "e": 4}
    assert differences(old, new) == ["a 1 -> 5", "b.d removed", "e added, 4"]
    assert differences(old, old) == []
