"""The history of an output, from dvc.lock and the records that the files keep."""

import hashlib

import pytest
import torch
import yaml

from lib.report.trace import trace
from lib.runtime.errors import UserError
from lib.runtime.files import write_tensors


@pytest.fixture
def project(tmp_path):
    """Two stages, one after the other, and an unrelated third."""
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/a.json").write_text("{}\n")
    write_tensors(
        tmp_path / "data/a.safetensors",
        {"w": torch.ones(2)},
        {"data": {"dataset": "digits", "checksum": "c0ffee"}, "versions": {"torch": "2"}},
    )

    def written(path):
        file = tmp_path / path
        return {"path": path, "md5": hashlib.md5(file.read_bytes()).hexdigest()}

    stages = {
        "pretrain@a": {
            "cmd": "python -m stages.pretrain a",
            "deps": [{"path": "lib/core", "md5": "12.dir"}],
            "params": {"params.yaml": {"seed": 3, "gamma": 0.5}},
            "outs": [written("data/a.safetensors")],
        },
        "linear@a": {
            "cmd": "python -m stages.linear a",
            "outs": [written("metrics/a.json")],
            "deps": [written("data/a.safetensors"), {"path": "lib/x.py", "md5": "34"}],
        },
        "linear@b": {"cmd": "python -m stages.linear b", "outs": [{"path": "metrics/b.json", "md5": "56"}]},
    }
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return tmp_path


def test_a_metrics_file_leads_to_code_parameters_seed_data_and_versions(project):
    lines = trace("metrics/a.json", project)
    assert lines[0] == "linear@a: python -m stages.linear a"
    assert "  read  lib/x.py  md5 34" in lines and "  read  lib/core  md5 12.dir" in lines
    assert lines.index("pretrain@a: python -m stages.pretrain a") > lines.index("  read  lib/x.py  md5 34")
    assert {"  gamma = 0.5", "  seed = 3", "  data: digits, checksum c0ffee", "  versions: torch 2"} <= set(lines)
    assert not any("linear@b" in line for line in lines)


def test_a_file_that_was_changed_by_hand_has_no_history(project):
    (project / "metrics/a.json").write_text('{"top1": 99}\n')
    with pytest.raises(UserError, match="metrics/a.json is not what linear@a wrote by dvc.lock; .*: dvc repro"):
        trace("metrics/a.json", project)


def test_an_encoder_that_was_exchanged_breaks_the_chain(project):
    write_tensors(project / "data/a.safetensors", {"w": torch.zeros(2)}, {})
    with pytest.raises(UserError, match="data/a.safetensors is not what pretrain@a wrote"):
        trace("metrics/a.json", project)


def test_outputs_that_are_only_in_the_cache_are_told_from_the_lock(project):
    (project / "data/a.safetensors").unlink()
    assert "  gamma = 0.5" in trace("metrics/a.json", project)


def test_unknown_files_and_a_missing_lock_are_refused(project):
    with pytest.raises(UserError, match="no stage that wrote metrics/c.json; name an output"):
        trace("metrics/c.json", project)
    (project / "dvc.lock").unlink()
    with pytest.raises(UserError, match="dvc.lock does not exist: no stage has run; dvc repro"):
        trace("metrics/a.json", project)
