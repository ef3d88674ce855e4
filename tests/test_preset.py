"""Presets: exact diffs, bytes kept, refusals in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from lib.params.check import check_params
from lib.params.spec import PARAMS_FILE, load_yaml
from lib.preset import BASE, apply_preset, describe, overlay, preset_names, read_preset, scalars, whole_variants
from lib.runtime.errors import UserError
from tests.examples import ROOT

TEXT = """\
# head
epochs: 100   # how long
lr: 1e-3
path: ""
empty:
block:
  # inside
  k: 200
  name: 'a'
tail: last
"""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """The committed params.yaml, with the study's preset, at a place of its own."""
    path = tmp_path / "params.yaml"
    path.write_bytes(PARAMS_FILE.read_bytes())
    apply_preset(BASE, [], path)
    return path


def test_overlay_replaces_only_the_text_of_a_value():
    after, changes = overlay(TEXT, {"epochs": "7", "block.k": "20", "lr": "0.001", "path": "../a b.zip", "empty": "5"})
    assert after == (
        TEXT.replace("100 ", "7 ").replace("200", "20").replace('""', "../a b.zip").replace("empty:", "empty: 5")
    )
    assert changes == ["epochs: 100 -> 7", 'path: "" -> ../a b.zip', "empty: nothing -> 5", "block.k: 200 -> 20"]


def test_overlay_of_equal_values_changes_nothing():
    assert overlay(TEXT, {"lr": "0.001", "epochs": "100", "tail": '"last"', "block.name": "a"}) == (TEXT, [])


@pytest.mark.parametrize(
    "source", ["[[1]]", "[1", "{a: 1}", "a: b", "5 # note", "1\n2", "'open", "!!python/name:os.system x"]
)
def test_overlay_refuses_what_is_not_one_value(source):
    with pytest.raises(UserError, match="epochs"):
        overlay(TEXT, {"epochs": source})


def test_unknown_key_names_its_neighbours():
    with pytest.raises(UserError, match=r"no key block\.x; keys there: block\.k, block\.name$"):
        overlay(TEXT, {"block.x": "1"})
    with pytest.raises(UserError, match=r"no key x; keys there: epochs, lr, path, empty, block, tail$"):
        overlay(TEXT, {"x": "1"})


def test_study_changes_nothing_in_the_committed_file():
    """Holds in a clone as committed; where a preset was applied since, `python -m lib.preset study` undoes it."""
    committed = subprocess.run(["git", "show", f"HEAD:{PARAMS_FILE}"], capture_output=True, text=True)
    text = committed.stdout if committed.returncode == 0 else PARAMS_FILE.read_text()
    assert overlay(text, read_preset(BASE)) == (text, [])


@pytest.mark.parametrize("name", preset_names())
def test_there_and_back_is_byte_identical(params, name):
    before = params.read_bytes()
    changes = apply_preset(name, ["epochs=3"], params)
    assert "epochs: 100 -> 3" in changes
    assert load_yaml(params)["epochs"] == 3
    check_params(load_yaml(params))
    apply_preset(BASE, [], params)
    assert params.read_bytes() == before


def test_a_preset_does_not_depend_on_the_one_before(params):
    apply_preset("cpu", [], params)
    direct = params.read_bytes()
    apply_preset("demo", [], params)
    apply_preset("cpu", [], params)
    assert params.read_bytes() == direct
    assert apply_preset("cpu", [], params) == []


@pytest.mark.parametrize("name", preset_names())
def test_the_base_names_every_key_that_a_preset_touches(name):
    added = [f"variants.{variant}." for variant in whole_variants(ROOT / "presets", name)]
    assert {key for key in read_preset(name) if not key.startswith(tuple(added))} <= set(read_preset(BASE))
    assert len(describe(name)) > 10


def test_whole_variants_come_and_go_with_their_preset(params):
    before = params.read_bytes()
    lines = apply_preset("all", [], params)
    added = list(whole_variants(ROOT / "presets", "all"))
    assert added and set(added) <= set(load_yaml(params)["variants"])
    assert [line for line in lines if line.endswith(": added")] == [f"variants.{variant}: added" for variant in added]
    check_params(load_yaml(params))
    assert apply_preset("all", [], params) == []
    apply_preset(BASE, [], params)
    assert params.read_bytes() == before


def test_a_file_that_ends_with_its_variants_and_no_line_end_takes_more(params):
    head, _, rest = params.read_text().partition("variants:\n")
    variants, _, tail = rest.partition("\nlinear:\n")
    params.write_text(f"{head}\nlinear:\n{tail}\nvariants:\n{variants}".rstrip())
    assert params.read_text().endswith("number: seed")
    apply_preset("all", [], params)
    assert "kwta" in load_yaml(params)["variants"]


def test_a_whole_variant_that_was_changed_stays(params):
    before = set(load_yaml(params)["variants"])
    apply_preset("all", ["variants.moco.temperature=0.3"], params)
    lines = apply_preset(BASE, [], params)
    assert "variants.moco: kept, it is not as preset all adds it" in lines
    assert load_yaml(params)["variants"]["moco"]["temperature"] == 0.3
    assert set(load_yaml(params)["variants"]) == before | {"moco"}


def test_variants_in_braces_are_refused_in_one_line(params):
    text = params.read_text()
    block = text[text.index("variants:\n") : text.index("\nlinear:")]
    params.write_text(text.replace(block, "variants: {}\n"))
    with pytest.raises(UserError, match="variants is missing or empty; write at least one"):
        apply_preset("all", [], params)
    params.write_text(text.replace(block, "variants: {a: {method: simclr}}\n"))
    with pytest.raises(UserError, match="variants is written in braces"):
        apply_preset("all", [], params)


def test_variants_of_another_indentation_are_refused_in_one_line(params):
    text = params.read_text()
    start, end = text.index("variants:\n") + len("variants:\n"), text.index("\nlinear:")
    deeper = "".join("  " + line for line in text[start:end].splitlines(keepends=True))
    params.write_text(text[:start] + deeper + text[end:])
    with pytest.raises(UserError, match="the variants are not indented by 2 spaces"):
        apply_preset("all", [], params)
    assert params.read_text() == text[:start] + deeper + text[end:]


def test_keys_of_presets_exist_in_params():
    known = scalars(PARAMS_FILE.read_text(), str(PARAMS_FILE))
    assert set(read_preset(BASE)) <= set(known)


def test_a_refused_result_leaves_the_file_alone(params):
    before = params.read_bytes()
    with pytest.raises(UserError, match="epochs is -1"):
        apply_preset("demo", ["epochs=-1"], params)
    assert params.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "error: there is no preset 'nope'; presets: all, codes, cpu, demo, study"),
        (["../params"], "error: there is no preset '../params'; presets: all, codes, cpu, demo, study"),
        (
            ["demo", "-S", "epochs"],
            "error: setting 'epochs' is not understood; write key=value, for example -S epochs=5",
        ),
        (["-S", "epochs=1"], "error: -S needs a preset before it; presets: all, codes, cpu, demo, study"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message):
    ended = subprocess.run([sys.executable, "-m", "lib.preset", *arguments], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr, ended.stdout) == (1, message + "\n", "")


def test_the_command_lists_presets():
    ended = subprocess.run([sys.executable, "-m", "lib.preset"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["all", "codes", "cpu", "demo", "study"]


def test_a_presets_value_for_a_removed_variant_is_left_out_and_said(params):
    text = params.read_text()
    start, end = text.index("  joint:\n"), text.index("  dual:\n")
    params.write_text(text[:start] + text[end:])
    changes = apply_preset("cpu", [], params)
    assert "variants.joint.temperature: left out, params.yaml has no variant joint" in changes
    assert load_yaml(params)["variants"]["dual"]["temperature"] == 0.2
    with pytest.raises(UserError, match="params.yaml has no key variants.joint.temperature"):
        apply_preset("cpu", ["variants.joint.temperature=0.1"], params)
