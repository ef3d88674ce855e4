"""What would rerun, from parameters alone; tests/test_pipeline.py holds it against what dvc really runs."""

import pytest

from lib.params.spec import load_yaml
from lib.plan import TIMES, Stage, _changed_json, main, seconds, stages_of
from tests.examples import ROOT, raw_params
from tests.faults.refusals import refused


def test_stages_are_those_of_dvc_yaml_with_their_slots_filled():
    raw = raw_params("demo")
    stages = {stage.name: stage for stage in stages_of(load_yaml(ROOT / "dvc.yaml"), raw)}
    assert "pretrain@joint" in stages and "transfer" not in stages
    assert "data/variants/joint.json" in stages["pretrain@joint"].deps
    assert "data/pictures" in stages["download"].deps
    assert {"data/encoders/joint.safetensors", "plots/curves/joint.csv"} == set(stages["pretrain@joint"].outs)
    assert stages["resolve"].params == ["params.yaml"] and stages["tsne@joint"].params == ["tsne"]
    assert not any("${" in path for stage in stages.values() for path in stage.deps + stage.outs)


def test_what_moves_a_variant_is_named():
    before = {"gamma": 0.01, "optimizer": {"lr": 1}, "code": {"lib/methods/simclr.py": "a"}}
    after = {"gamma": 0.1, "optimizer": {"lr": 1}, "code": {"lib/methods/simclr.py": "b"}}
    assert _changed_json(before, after) == ["gamma 0.01 -> 0.1", "lib/methods/simclr.py changed"]
    assert _changed_json(before, before) == []


def test_times_are_of_the_last_run_scaled_to_the_epochs(tmp_path, monkeypatch):
    assert TIMES.name == ".times"
    monkeypatch.setattr("lib.plan.TIMES", tmp_path)
    (tmp_path / "joint.csv").write_text("epoch,seconds\n1,10\n2,14\n")
    assert seconds(Stage("pretrain@joint", [], [], []), {"joint": 5}) == 60
    assert seconds(Stage("pretrain@new", [], [], []), {"new": 5}) is None
    assert seconds(Stage("linear@new", [], [], []), {}) is None
    (tmp_path / "linear@joint.json").write_text('{"seconds": 7.5}')
    assert seconds(Stage("linear@new", [], [], []), {}) == 7.5


def test_a_damaged_note_of_a_time_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.plan.TIMES", tmp_path)
    (tmp_path / "joint.csv").write_text("epoch,seconds\n1,ten\n")
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "report.json").write_text('{"seconds": null}')
    stages = [Stage(name, [], [], []) for name in ("pretrain@joint", "results", "report")]
    assert [seconds(stage, {"joint": 5}) for stage in stages] == [None] * 3


def test_a_block_that_dvc_yaml_reads_and_params_yaml_lacks_is_named():
    for missing, key in (("transfer", "transfer.variants"), ("verdict", "verdict")):
        raw = raw_params("demo")
        del raw[missing]
        refused(lambda raw=raw: stages_of(load_yaml(ROOT / "dvc.yaml"), raw), f"params.yaml has no {key}, which dvc")


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"- 1"])
def test_without_a_params_yaml_nothing_is_planned(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "params.yaml").write_bytes(content)
    for arguments in ([], ["-S", "gamma=0.1"]):
        refused(lambda arguments=arguments: main(arguments), "params.yaml")
