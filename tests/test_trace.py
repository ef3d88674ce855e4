"""The history of an output, from dvc.lock and what the files keep."""

import hashlib

import pytest
import torch
import yaml

from lib.report.trace import main, trace
from lib.runtime.errors import UserError
from lib.runtime.files import write_tensors, write_text


@pytest.fixture
def project(tmp_path):
    """resolve, pretrain and linear of one variant, one after the other, linear of another, and results of both."""
    write_text(tmp_path / "metrics/a.json", "{}\n")
    about = {
        "data": {"dataset": "digits", "checksum": "c0ffee"},
        "versions": {"torch": "2"},
        "pretraining": {"seed": 3},
    }
    write_tensors(tmp_path / "data/encoders/a.safetensors", {"w": torch.ones(2)}, about)

    def written(path):
        return {"path": path, "md5": hashlib.md5((tmp_path / path).read_bytes()).hexdigest()}

    encoder = written("data/encoders/a.safetensors")
    stages = {
        "resolve": {
            "cmd": "python -m stages.resolve",
            "params": {"params.yaml": {"seed": 3, "gamma": 0.5}},
            "outs": [{"path": "data/variants", "md5": "78.dir"}],
        },
        "pretrain@a": {
            "cmd": "python -m stages.pretrain a",
            "deps": [{"path": "lib/core", "md5": "12.dir"}, {"path": "data/variants/a.json", "md5": "90"}],
            "outs": [encoder],
        },
        "linear@a": {
            "cmd": "python -m stages.linear a",
            "outs": [written("metrics/a.json")],
            "deps": [encoder, {"path": "lib/x.py", "md5": "34"}],
        },
        "linear@b": {"cmd": "python -m stages.linear b", "outs": [{"path": "metrics/b.json", "md5": "56"}]},
        "results": {
            "cmd": "python -m stages.results",
            "deps": [{"path": "data/encoders", "md5": "1.dir"}],
            "outs": [{"path": "metrics/results.csv", "md5": "2"}],
        },
    }
    write_text(tmp_path / "dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return tmp_path


def test_a_metrics_file_leads_to_code_parameters_seed_data_and_versions(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    main(["metrics/a.json"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line[0] != " "] == [
        "linear@a: python -m stages.linear a",
        "pretrain@a: python -m stages.pretrain a",
        "resolve: python -m stages.resolve",
    ]
    assert {
        *("  read  lib/x.py  md5 34", "  read  lib/core  md5 12.dir", "  gamma = 0.5", "  seed = 3"),
        *("  data: digits, checksum c0ffee", '  versions: {"torch": "2"}', '  pretraining: {"seed": 3}'),
    } <= set(lines)


def test_a_folder_that_a_stage_reads_leads_to_all_that_wrote_into_it(project):
    stages = [line.split(":")[0] for line in trace("metrics/results.csv", project) if line[0] != " "]
    assert stages == ["results", "pretrain@a", "resolve"]


@pytest.mark.parametrize("path", ["metrics/a.json", "data/encoders/a.safetensors"])
def test_a_file_that_was_changed_by_hand_has_no_history(project, path):
    (project / path).write_bytes(b"other")
    with pytest.raises(UserError, match=f"{path} is not what (linear|pretrain)@a wrote by dvc.lock; .*: dvc repro"):
        trace("metrics/a.json", project)


def test_outputs_that_are_only_in_the_cache_are_told_from_the_lock(project):
    (project / "data/encoders/a.safetensors").unlink()
    assert "  gamma = 0.5" in trace("metrics/a.json", project)


def test_unknown_files_and_a_missing_lock_are_refused(project):
    with pytest.raises(UserError, match="no stage that wrote metrics/c.json; name an output"):
        trace("metrics/c.json", project)
    (project / "dvc.lock").unlink()
    with pytest.raises(UserError, match="dvc.lock does not exist: no stage has run; dvc repro"):
        trace("metrics/a.json", project)
