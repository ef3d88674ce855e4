"""From params.yaml to one JSON for each variant: exactly what it reads."""

import json
import subprocess
import sys

import pytest
import yaml

from lib.params.experiment import parse_experiment, read_experiment
from lib.params.pretraining import Pretraining
from lib.resolve import check_against_data, read_variant, remove_left_overs, resolve, write_variants
from lib.runtime.errors import UserError
from tests.examples import ROOT, images, raw_params


def resolved(**variants):
    """The JSON of variants of the method simclr with these blocks, under the tiny shared numbers."""
    blocks = {name: {"method": "simclr", **block} for name, block in variants.items()}
    return resolve(parse_experiment(raw_params(variants=blocks)))


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


def test_a_shared_number_is_there_only_where_the_variant_reads_it():
    found = resolved(simclr={}, joint={"term": "pull"}, untrained={"epochs": 0}, cpc={"method": "cpc"})
    assert found["joint"]["gamma"] == 0.01 and "gamma" not in found["simclr"]
    assert "encoder" not in found["cpc"] and found["simclr"]["encoder"] == "small"
    assert not {"batch_size", "optimizer", "micro_batch_size"} & found["untrained"].keys()


@pytest.mark.parametrize(
    ("key", "value", "moved"),
    [
        ("gamma", 0.5, {"joint"}),
        ("batch_size", 8, {"simclr", "joint", "own_gamma"}),
        ("seed", 7, {"simclr", "joint", "own_batch", "own_gamma", "untrained"}),
        ("encoder", "resnet18", {"simclr", "joint", "own_batch", "own_gamma", "untrained"}),
    ],
)
def test_a_changed_number_moves_the_variants_that_read_it(key, value, moved):
    variants = {
        "simclr": {"method": "simclr"},
        "joint": {"method": "simclr", "term": "pull"},
        "own_batch": {"method": "simclr", "batch_size": 32},
        "own_gamma": {"method": "simclr", "term": "pull", "gamma": 0.2},
        "untrained": {"method": "simclr", "epochs": 0},
    }
    before, after = raw_params(variants=variants), raw_params(variants=variants, **{key: value})
    assert changed(resolve(parse_experiment(before)), resolve(parse_experiment(after))) == moved


def test_options_are_spelled_out_so_that_a_default_written_down_changes_nothing():
    found = resolved(bare={}, spelled={"temperature": 0.5, "term": "none"})
    assert {**found["bare"], "variant": "spelled"} == found["spelled"]


def test_what_was_written_is_read_back(tmp_path, monkeypatch):
    raw = raw_params()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    found = resolve(parse_experiment(raw))
    write_variants(found)
    for name, stored in found.items():
        assert read_variant(name) == json.loads((tmp_path / f"data/variants/{name}.json").read_text())
        params = Pretraining.from_json({key: value for key, value in stored.items() if key != "code"})
        assert {**params.as_json(), "code": stored["code"]} == stored
    raw["seed"] = 5
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=r"simclr\.json is older than params\.yaml"):
        read_variant("simclr")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"gamma": 0.5}, r"variants\.x\.gamma has no effect"),
        (
            {"method": "supervised", "augment_second": {"blur": 1.0}},
            r"x\.augment_second has no effect: .* not read it; re",
        ),
        ({"method": "kwta", "positives": "class", "augment_second": {"blur": 1.0}}, r"x\.augment_second has no effect"),
        ({"epochs": 0, "augment_second": {"blur": 1.0}}, r"variants\.x\.augment_second has no effect: .* 0 epochs"),
        ({"epochs": 0, "batch_size": 8}, r"variants\.x\.batch_size has no effect: .* 0 epochs"),
        ({"method": "cpc", "encoder": "resnet18"}, r"variants\.x\.encoder has no effect"),
        ({"temperatur": 0.5}, r"unknown key variants\.x\.temperatur \(did you mean temperature\?\)"),
    ],
)
def test_a_slip_is_refused_by_name(block, words):
    with pytest.raises(UserError, match=words):
        resolved(x=block)


def test_a_gamma_that_nobody_reads_is_refused():
    raw = raw_params(variants={"simclr": {"method": "simclr"}}, gamma=0.1)
    with pytest.raises(UserError, match=r"gamma is 0\.1, which has no effect"):
        resolve(parse_experiment(raw))


def test_a_second_views_recipe_is_there_where_a_second_view_is():
    blocks = {
        "simclr": {"method": "simclr"},
        "one": {"method": "supervised"},
        "none": {"method": "simclr", "epochs": 0},
    }
    raw = raw_params(variants=blocks, augment_second={"solarize": 0.5})
    assert [name for name, stored in resolve(parse_experiment(raw)).items() if "augment_second" in stored] == ["simclr"]
    del raw["variants"]["simclr"]
    with pytest.raises(UserError, match="augment_second has no effect: no variant has a second view; remove it"):
        resolve(parse_experiment(raw))


def test_all_that_does_not_fit_the_data_is_told_in_one_list():
    variants = {name: {"method": "simclr"} for name in ("one", "other")}
    raw = raw_params(variants=variants, batch_size=512, knn__k=60, tsne__points=300, tsne__perplexity=40.0)
    with pytest.raises(UserError) as refusal:
        check_against_data(parse_experiment(raw), images(count=64).about)
    for part in ("knn.k is 60", "tsne.perplexity is 40", "batch_size of one is 512", "batch_size of other is 512"):
        assert part in str(refusal.value)


def small(**changes):
    """One variant whose numbers fit few images."""
    usual = {"variants": {"one": {"method": "simclr"}}, "knn__k": 5, "tsne__points": 20, "tsne__perplexity": 5.0}
    return parse_experiment(raw_params(**{**usual, **changes}))


def test_a_memory_needs_a_class_with_two_test_images():
    check_against_data(small(), images(64, classes=31).about)
    with pytest.raises(UserError, match="every class has one test image at most; allowed: a class with two"):
        check_against_data(small(), images(64, classes=32).about)


def test_a_batch_is_shared_evenly_among_processes():
    check_against_data(small(), images().about, processes=4)
    with pytest.raises(UserError, match="processes 3 .machine setting., a multiple"):
        check_against_data(small(), images().about, processes=3)


def test_left_overs_of_gone_variants_are_removed_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    gone = {
        "data/variants/gone.json",
        "data/encoders/gone.safetensors",
        "plots/tsne/gone/h.png",
        "metrics/gone.json",
        "plots/curves/old.csv",
    }
    gone |= {"data/memory/gone.npz", "metrics/memory/gone.json"}
    kept = {"metrics/kept.json", "metrics/mine.json", "reports/train/notes.txt", "data/scores/kept.npz", "dvc.lock"}
    # in the folders of the stages, but by no stage: DVC's cache has no such content
    mine = {"data/encoders/mine_before.safetensors", "data/embeddings/keep/h.npz", "plots/curves/notes.txt"}
    for name in gone | kept | mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine" if name in mine else "x")
    known = tmp_path / ".dvc/cache/files/md5/9d/d4e461268c8034f5c8564e155c67a6"  # of "x"
    known.parent.mkdir(parents=True)
    known.write_text("x")
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n"
        "  linear@gone: {cmd: x, outs: [{path: metrics/gone.json}]}\n"
        "  memory@gone: {cmd: x, outs: [{path: metrics/memory/gone.json}]}\n"
        "  tsne@gone: {cmd: x, outs: [{path: plots/tsne/gone}]}\n"
        "  report@train: {cmd: x, outs: [{path: reports/train}]}\n"
        "  linear@away: {cmd: x, outs: [{path: ../outside.json}]}\n"
        "  linear@kept: {cmd: x, outs: [{path: metrics/kept.json}]}\n"
    )
    (tmp_path.parent / "outside.json").write_text("x")
    removed = set(remove_left_overs({"kept"}, tmp_path))
    assert removed == {"plots/tsne/gone" if "tsne" in name else name for name in gone}
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in left if not name.startswith(".dvc")} == kept | mine
    assert (tmp_path.parent / "outside.json").is_file()


def test_a_method_with_labels_is_held_to_the_images_without_validation():
    variants = {"one": {"method": "simclr"}, "ceiling": {"method": "supervised"}}
    with pytest.raises(UserError, match="batch_size of ceiling is 60") as refusal:
        check_against_data(small(variants=variants, batch_size=60), images().about)
    assert "batch_size of one" not in str(refusal.value)


def test_transfer_is_held_to_the_encoder_that_it_takes_before_anything_trains():
    experiment = small(transfer__variants=["one"], transfer__source="nowhere.safetensors")
    with pytest.raises(UserError, match="names one, whose encoder is small") as refusal:
        check_against_data(experiment, images().about)
    assert "transfer.source is nowhere.safetensors" in str(refusal.value)


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_resolves(preset):
    experiment = read_experiment(preset)
    assert set(resolve(experiment)) == set(experiment.variants)
