"""The history of an output, from dvc.lock and what the files keep."""

import hashlib
import json

import pytest
import torch

from lib.runtime.files import write_tensors, write_text
from lib.trace import main, trace
from tests.faults.refusals import refused

LOCK = """\
schema: '2.0'
stages:
  resolve: {{cmd: run, params: {{params.yaml: {{seed: 3, gamma: 0.5}}}}, outs: [{{path: data/variants, md5: 7}}]}}
  pretrain@a:
    cmd: pretrain a
    deps: [{{path: lib/core, md5: 12.dir}}, {{path: data/variants/a.json, md5: '90'}}]
    outs: [{{path: data/encoders/a.safetensors, md5: {encoder}}}]
  linear@a:
    cmd: linear a
    deps: [{{path: data/encoders/a.safetensors, md5: {encoder}}}, {{path: lib/x.py, md5: '34'}}]
    outs: [{{path: metrics/a.json, md5: {metrics}}}]
  linear@b: {{cmd: linear b, outs: [{{path: metrics/b.json, md5: '56'}}]}}
  results:
    cmd: results
    deps: [{{path: data/encoders, md5: 1.dir}}]
    outs: [{{path: metrics/results.csv, md5: '2'}}]
"""


DATA = {"dataset": "digits", "checksum": "c0ffee"}
PRETRAINED = {"encoder": "small", "epochs": 3, "seed": 3}


@pytest.fixture
def project(tmp_path):
    """resolve, pretrain and linear of one variant, one after the other, linear of another, and results of both."""
    encoder, metrics = tmp_path / "data/encoders/a.safetensors", tmp_path / "metrics/a.json"
    about = {"data": DATA, "versions": {"torch": "2"}, "encoder": "small", "pretraining": PRETRAINED}
    write_tensors(encoder, {"w": torch.ones(2)}, about)
    write_text(metrics, '{"top1": 62.5, "knn": 50, "study_top1": null}\n')
    sums = {path.parent.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (encoder, metrics)}
    write_text(tmp_path / "dvc.lock", LOCK.format(encoder=sums["encoders"], metrics=sums["metrics"]))
    return tmp_path


def test_a_metrics_file_leads_to_code_parameters_seed_data_and_versions(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    main(["metrics/a.json", "--all"])
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line[0] != " "]
    assert told == ["linear@a: linear a", "pretrain@a: pretrain a", "resolve: run"]
    known = ("data: digits, checksum c0ffee", 'versions: {"torch": "2"}', f"pretraining: {json.dumps(PRETRAINED)}")
    for line in ("read  lib/x.py  md5 34", "read  lib/core  md5 12.dir", "gamma = 0.5", "seed = 3", *known):
        assert f"  {line}" in lines


def test_a_trace_begins_with_eight_lines(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", ".")
    write_tensors(project / "data/images.safetensors", {"w": torch.ones(2)}, DATA)
    for name, gamma in (("far", 2), ("near", 0.1)):
        write_text(project / f"presets/{name}.yaml", f"seed: {2 + (name == 'near')}\ngamma: {gamma}\n")
    write_text(project / ".times/linear@a.json", '{"seconds": 12.3, "ended": "2026-11-30T18:00:00+00:00"}')
    write_text(project / ".times/a.csv", "epoch,device\n1,cpu x1\n")
    changed = {"changed deps": {"lib/core": "modified", "data/images.safetensors": "modified"}}
    monkeypatch.setattr("lib.trace.ask_dvc", lambda *_: {"pretrain@a": [changed, "changed command"]})
    main(["metrics/a.json"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        ["metrics/a.json", "top1 62.5, knn 50"],
        ["data", "digits, sha256 c0ffee"],
        ["encoder", "small"],
        ["epochs", "3"],
        ["seed", "3"],
        ["settings", "preset near, but gamma 0.1 -> 0.5"],
        ["code", "of no commit; the file is of other code in lib/core"],
        ["run", "the stage last ran here 2026-11-30 18:00:00+00:00, 12 s; training on cpu x1"],
    ]
    assert "--all" in last


def test_a_folder_that_a_stage_reads_leads_to_all_that_wrote_into_it(project):
    stages = [line.split(":")[0] for line in trace("metrics/results.csv", project) if line[0] != " "]
    assert stages == ["results", "pretrain@a", "resolve"]


def test_a_file_that_was_changed_by_hand_has_no_history(project):
    for stage, path in {"pretrain@a": "data/encoders/a.safetensors", "linear@a": "metrics/a.json"}.items():
        (project / path).write_bytes(b"other")
        words = f"{path} is not what {stage} wrote by dvc.lock; it was changed by hand"
        refused(lambda: trace("metrics/a.json", project), words, ": dvc repro")


def test_a_folder_that_was_changed_by_hand_has_no_history(project):
    for name in ("h.png", "one/more.png"):
        write_text(project / "plots/tsne/a" / name, name)
    lock = (project / "dvc.lock").read_text()
    # as DVC writes it of these two files
    write_text(
        project / "dvc.lock",
        lock + "  tsne@a: {cmd: tsne a, outs: [{path: plots/tsne/a, md5: 9e6a286bb0bf7a4cabae8e18efad5a8c.dir}]}\n",
    )
    assert "tsne@a: tsne a" in trace("plots/tsne/a/h.png", project)
    refused(lambda: trace("plots/tsne/a/z.png", project), "no stage that wrote plots/tsne/a/z.png; name an output")
    refused(lambda: trace("metrics/a.json/z", project), "no stage that wrote metrics/a.json/z; name an output")
    write_text(project / "plots/tsne/a/h.png", "other")
    refused(lambda: trace("plots/tsne/a/h.png", project), "plots/tsne/a is not what tsne@a wrote by dvc.lock")


@pytest.mark.parametrize("stages", ["3", "{linear@a: 3}", "[]"])
def test_a_lock_that_dvc_did_not_write_is_refused(project, stages):
    write_text(project / "dvc.lock", f"stages: {stages}\n")
    refused(lambda: trace("metrics/a.json", project), "dvc.lock is not as DVC writes it")


def test_unknown_files_and_an_empty_or_missing_lock_are_refused(project):
    refused(lambda: trace("metrics/c.json", project), "no stage that wrote metrics/c.json; name an output")
    (project / "dvc.lock").write_text("")  # as DVC leaves it for a moment
    refused(lambda: trace("metrics/a.json", project), "dvc.lock is empty; if DVC is running, try again")
    (project / "dvc.lock").unlink()
    refused(lambda: trace("metrics/a.json", project), "dvc.lock does not exist: no stage has run; dvc repro")
