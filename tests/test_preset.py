"""Presets are complete files; what they replace is never lost."""

import pytest

from lib.params.spec import load_yaml, read_yaml
from lib.preset import FOLDER, apply_preset, describe, differences, preset_names, with_settings
from lib.runtime.errors import UserError
from tests.examples import ROOT

PRESETS = ROOT / FOLDER


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text((PRESETS / "study.yaml").read_text())
    return path


def test_a_preset_is_copied_byte_for_byte_and_what_differs_is_said(params):
    lines = apply_preset("demo", [], params, PRESETS)
    assert params.read_text() == (PRESETS / "demo.yaml").read_text()
    assert "dataset cifar10 -> digits" in lines and "encoder resnet50 -> small" in lines
    assert apply_preset("demo", [], params, PRESETS) == ["no change"]
    assert not (params.parent / "params.yaml.bak").exists()


def test_what_was_no_preset_is_kept(params):
    own = params.read_text().replace("gamma: 0.01", "gamma: 0.3")
    params.write_text(own)
    apply_preset("cpu", [], params, PRESETS)
    assert (params.parent / "params.yaml.bak").read_text() == own


def test_settings_change_their_values_and_keep_comments(params):
    apply_preset("study", ["gamma=1e-4", "optimizer.lr=0.5", "transfer.variants=[simclr]"], params, PRESETS)
    found = load_yaml(params)
    assert (found["gamma"], found["optimizer"]["lr"], found["transfer"]["variants"]) == (1e-4, 0.5, ["simclr"])
    before = (PRESETS / "study.yaml").read_text().splitlines()
    comments = [line for line in before if line.lstrip().startswith("#")]
    assert [line for line in params.read_text().splitlines() if line.lstrip().startswith("#")] == comments


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["gamma"], "setting 'gamma' is not understood"),
        (["gamme=1"], r"no key gamme \(did you mean gamma\?\)"),
        (["optimizer.rate=1"], "no key optimizer.rate"),
        (["gamma=x"], "gamma is 'x'; allowed: a number"),
        (["gamma=[1"], "is not valid YAML"),
    ],
)
def test_a_refused_setting_leaves_the_file_as_it_was(params, settings, words):
    before = params.read_text()
    with pytest.raises(UserError, match=words):
        apply_preset("demo", settings, params, PRESETS)
    assert params.read_text() == before


def test_an_unknown_preset_is_refused(params):
    names = "all, codes, cpu, demo, hypothesis, pilot, study"
    with pytest.raises(UserError, match=f"there is no preset 'cup'; presets: {names}"):
        apply_preset("cup", [], params, PRESETS)


def test_every_preset_says_what_it_is_for_and_names_the_same_shared_keys():
    keys = [[key for key in load_yaml(PRESETS / f"{name}.yaml") if key != "variants"] for name in preset_names(PRESETS)]
    assert all(each == keys[0] for each in keys)
    assert all(describe(name, PRESETS).endswith(".") for name in preset_names(PRESETS))
    assert (ROOT / "params.yaml").is_file()


def test_differences_are_told_by_key():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 5, "b": {"c": 2}, "e": 4}
    assert differences(old, new) == ["a 1 -> 5", "b.d removed", "e added, 4"]
    assert differences(old, old) == []


def test_settings_of_variants_may_add_an_option():
    text = with_settings((PRESETS / "study.yaml").read_text(), ["variants.simclr.seed=3"])
    assert read_yaml(text, "x")["variants"]["simclr"] == {"method": "simclr", "seed": 3}
