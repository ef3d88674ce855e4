"""The rule in params.yaml, the small files of runs, the refusals, and what a folder of them becomes."""

import re
from pathlib import Path

import pandas
import pytest
import yaml

from lib.commands import verdict
from lib.params.experiment import parse_experiment, read_experiment
from lib.params.pretraining import Pretraining
from lib.report.verdict import dose, read_runs, run_file, write_verdict
from lib.resolve import resolve_variant
from lib.runtime.files import read_json, write_json, write_table
from stages.verdict import main as stage
from tests.examples import ROOT, pretraining
from tests.faults.refusals import refused
from tests.verdict_runs import RULE, SEEDS, experiment, latent_record, raw, run, write_outputs, write_runs

WORDS = r"\| (supported|refuted|beyond|along|inside|above|below|within) \|"
FIGURES = {"plane.png", "dose.png", "ranks.png", "completion.png"}


@pytest.fixture
def folder(tmp_path):
    write_runs(tmp_path, experiment())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw(), sort_keys=False))
    return tmp_path


def changed(folder, variant, **changes):
    """One run's file with ``changes``, those of its pretraining as ``pretraining__key``."""
    stored = run(experiment(), variant)
    for key, value in changes.items():
        block, _, name = key.rpartition("__")
        (stored[block] if block else stored)[name] = value
    write_json(folder / f"runs/{stored['name']}.json", stored)


def refused_runs(folder, *words):
    return refused(lambda: read_runs(folder / "runs", experiment()), *words)


# the rule


def test_a_rule_is_typed_and_its_prefixes_are_spelled_out():
    rule = experiment().rule
    assert rule.arms["pull"] == tuple(f"pull_s{seed}" for seed in SEEDS) and len(rule.arm_of) == 45
    assert (rule.numbers.h1_margin, rule.numbers.confidence, rule.controls) == (1.0, 0.9, ("oracle", "supervised"))
    arms = {**RULE["arms"], "pull": [f"pull_s{seed}" for seed in SEEDS]}
    assert parse_experiment(raw(arms=arms)).rule.digest == rule.digest
    assert parse_experiment({**raw(), "verdict": {}}).rule is None
    without = raw()
    del without["verdict"]
    assert parse_experiment(without).rule is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": {**RULE["arms"], "pull": ["pull_s11", "pul_s12"]}}, ["verdict.separation.arms.pull is ", "pul_s12"]),
        ({"arms": {**RULE["arms"], "oracle": ["oracle_s11"]}}, ["arms.oracle is of the seeds [11]", "at least two"]),
        ({"arms": {**RULE["arms"], "pull": "pul_s"}}, ["arms.pull is of the seeds []"]),
        ({"arms": {**RULE["arms"], "pull": "simclr_s"}}, ["simclr_s11 is in two arms"]),
        ({"arms": {**RULE["arms"], "pull": ["pull_s11", "pull_s12"]}}, ["all of [11, 12, 13, 14, 15, 16]"]),
        ({"arms": {**RULE["arms"], "oracle": ["oracle_s11", "supervised_s12"], "supervised": ["supervised_s11",
          "supervised_s13"]}}, ["supervised_s12 and oracle_s11 differ in more than their seed"]),
        ({"pilot_seeds": [1, 12]}, ["seed 12 is a pilot's and confirmatory"]),
        ({"seeds": SEEDS[:5], "pilot_seeds": [16]}, ["seed 16 is a pilot's"]),
        ({"seeds": SEEDS[:5]}, ["seed 16 is none of the confirmatory"]),
        ({"hypotheses": ["pulll"]}, ["verdict.separation.hypotheses is ['pulll']"]),
        ({"baseline": "x"}, ["verdict.separation.baseline is ['x']"]),
        ({"delta": 0.0}, ["delta is 0.0; allowed: a number above 0"]),
        ({"margin": 1}, ["unknown key verdict.separation.margin"]),
    ],
)  # fmt: skip
def test_a_rule_that_does_not_fit_is_refused_in_one_line(changes, words):
    refused(lambda: parse_experiment(raw(**changes)), *words)


def test_a_rule_needs_its_delta_and_two_rules_are_refused():
    params = raw()
    del params["verdict"]["separation"]["delta"]
    refused(lambda: parse_experiment(params), "verdict.separation.delta is missing")
    params["verdict"]["again"] = {}
    refused(lambda: parse_experiment(params), "one rule by its name")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hypotheses": []}, ["hypotheses is []", "one arm or more"]),
        ({"hypotheses": ["simclr", "pull"]}, ["not the baseline simclr"]),
        ({"hypotheses": [["pull"]]}, ["hypotheses is [['pull']]"]),
        ({"frontier": ["simclr"]}, ["frontier is ['simclr']", "at least two"]),
        ({"oracle": "supervised"}, ["oracle is supervised", "another arm"]),
        ({"confidence": 0.95}, ["seeds is a list of 6", "the least p, here 0.0938"]),
    ],
)
def test_a_rule_that_no_run_could_satisfy_is_refused(changes, words):
    refused(lambda: parse_experiment(raw(**changes)), *words)


def test_a_rule_judges_frozen_latents():
    refused(lambda: parse_experiment({**raw(), "linear": {"mode": "finetune"}}), "linear.mode is finetune")


@pytest.mark.parametrize("changes", [{"memory": {"draws": 2}}, {"epochs": 7}, {"augment": {"flip": 0.0}}])
def test_what_arms_train_with_and_are_measured_by_is_a_part_of_the_rule(changes):
    assert parse_experiment({**raw(), **changes}).rule.digest != experiment().rule.digest


def test_the_rules_digest_is_in_what_a_training_reads_and_moves_with_any_number():
    before, after = experiment(), parse_experiment(raw(delta=0.16))
    stored = resolve_variant(before, "pull_s11")
    assert stored["rule"] == before.rule.digest != resolve_variant(after, "pull_s11")["rule"] == after.rule.digest
    params = Pretraining.from_json(stored)
    assert params.rule == before.rule.digest and params.as_json()["rule"] == params.rule
    assert "rule" not in resolve_variant(parse_experiment({**raw(), "verdict": {}}), "pull_s11")
    # replicates are the same under another rule, and under none
    unruled = Pretraining.from_json({key: value for key, value in stored.items() if key != "rule"})
    assert unruled.rule is None and unruled.replicate_key() == params.replicate_key()


# a run's file


def test_a_runs_file_comes_from_the_pipelines_outputs(tmp_path):
    write_outputs(tmp_path, experiment(), "pull_s11")
    found, expected = run_file("pull_s11", experiment().rule, tmp_path), run(experiment(), "pull_s11")
    assert found.pop("lambda") == pytest.approx(0.0315 * 16 * 0.2 / 11.2)  # of a batch of 16
    del expected["lambda"]
    assert found == expected
    (tmp_path / "plots/curves/pull_s11.csv").unlink()
    refused(lambda: run_file("pull_s11", experiment().rule, tmp_path), "pull_s11.csv does not exist")
    write_json(tmp_path / "metrics/pull_s11.json", {})
    refused(lambda: run_file("pull_s11", experiment().rule, tmp_path))


def test_the_stage_writes_runs_verdict_and_figures_and_its_folder_gives_the_same_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(raw(), sort_keys=False))
    for variant in experiment().rule.arm_of:
        write_outputs(tmp_path, experiment(), variant)
    write_json(Path("data/landmarks/pixels_8x8.json"), latent_record(run(experiment(), "untrained_s11")["memory"]))
    stage()
    assert {path.name for path in Path("plots/verdict").iterdir()} == FIGURES
    assert len(list(Path("metrics/verdict/runs").iterdir())) == 45 and Path("metrics/verdict/pixels_8x8.json").is_file()
    verdict(["metrics/verdict"])
    assert read_json(Path("metrics/verdict/verdict.json")) == read_json(Path("metrics/verdict.json"))
    first, second = capsys.readouterr().out.split("separation: complete")[1:]
    assert first == second.rstrip("\n") + "\n"


def test_another_run_of_a_variant_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(raw(), sort_keys=False))
    write_outputs(tmp_path, experiment(), "simclr_s11")
    for _ in range(2):  # the same run again is no other
        verdict(["kept", "--collect"])
    write_json(Path("kept/runs/simclr_s11.json"), {**read_json(Path("kept/runs/simclr_s11.json")), "top1": 99.0})
    refused(lambda: verdict(["kept", "--collect"]), "kept/runs/simclr_s11.json is another run of this variant")


def test_what_is_finished_on_one_machine_is_collected(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(raw(), sort_keys=False))
    for variant in ("simclr_s11", "pull_s11", "push_s11"):
        write_outputs(tmp_path, experiment(), variant)
    Path("data/memory/push_s11.json").unlink()
    verdict(["kept", "--collect"])
    assert capsys.readouterr().out.startswith("separation: undecided: 2 of 45 runs")
    assert {path.name for path in Path("kept/runs").iterdir()} == {"simclr_s11.json", "pull_s11.json"}


def test_the_dose_is_the_pull_on_a_pair_relative_to_nt_xents(tmp_path):
    """As the study's doses: gamma 0.01 with D 8.9 and gamma 0.2 with D 8.9, temperature 0.5, 256 images."""
    write_table(curve := tmp_path / "curve.csv", pandas.DataFrame({"epoch": [1, 2], "distance": [11.0, 8.9]}))
    usual = {"batch_size": 256, "temperature": 0.5}
    plain = {"term": "none", "negatives": "all", **usual}
    assert dose(pretraining("joint", gamma=0.01, **usual), curve) == pytest.approx(0.14, abs=0.005)
    assert dose(pretraining("push", gamma=0.2, **usual), curve) == pytest.approx(-0.32, abs=0.005)
    assert dose(pretraining("simclr", **plain), curve) == 0
    oracle = {**plain, "negatives": "class"}
    for params in (pretraining("supervised"), pretraining("simclr", **oracle), pretraining("simclr", epochs=0)):
        assert dose(params, curve) is None


# refusals


def test_runs_that_may_not_count_are_refused_in_one_line(folder):
    assert len(read_runs(folder / "runs", experiment())) == 45
    changed(folder, "pull_s11", rule="0" * 64)
    refused_runs(folder, "run pull_s11 was trained under another rule", "the rule must be older than the run")
    changed(folder, "pull_s11", rule=None)
    refused_runs(folder, "run pull_s11 was trained under no rule")
    changed(folder, "pull_s11", pretraining__seed=1)
    refused_runs(folder, "run pull_s11 has the pilot's seed 1")
    changed(folder, "pull_s11", pretraining__epochs=30)
    refused_runs(folder, "epochs of run pull_s11 is 30, not what params.yaml has")
    options = run(experiment(), "pull_s11")["pretraining"]["options"]
    changed(folder, "pull_s11", pretraining__options={**options, "temperature": 0.5})
    refused_runs(folder, "temperature of run pull_s11 is 0.5")
    changed(folder, "pull_s11", pretraining__options={**options, "projector_out": 64})  # not in params.yaml
    refused_runs(folder, "projector_out of run pull_s11 is 64")
    changed(folder, "pull_s11", pretraining__augment_second={"flip": 0.0})
    refused_runs(folder, "augment_second of run pull_s11")
    changed(folder, "pull_s11", data="a JPEG copy")
    refused_runs(folder, "runs of different images")
    changed(folder, "pull_s11")
    write_json(folder / "runs/pull_s11 (1).json", run(experiment(), "pull_s11"))
    refused_runs(folder, "runs has run pull_s11 in two files; keep one of them")
    (folder / "runs/pull_s11 (1).json").unlink()
    changed(folder, "push_s11", name="pull_s99")
    refused_runs(folder, "run pull_s99 is of no arm of the rule separation")
    write_json(folder / "runs/pull_s99.json", {"name": "pull_s99"})
    refused_runs(folder, "a run of another version ('pretraining')")


def test_a_rule_that_was_changed_after_the_runs_judges_none_of_them(folder):
    later = parse_experiment(raw(delta=0.01))
    refused(lambda: read_runs(folder / "runs", later), "another rule than that of params.yaml")


# a folder


def test_a_folder_of_runs_becomes_a_verdict_with_its_figures(folder, capsys):
    write_json(folder / "pixels_8x8.json", run(experiment(), "untrained_s11")["memory"])
    verdict([str(folder)])
    assert capsys.readouterr().out.splitlines()[0] == "separation: complete"
    assert {path.name for path in folder.glob("*.png")} == FIGURES
    found, page = read_json(folder / "verdict.json"), (folder / "verdict.md").read_text()
    assert found["digest"] == experiment().rule.digest and found["digest"] in page
    words = re.search(r"^\| lookalikes \|.*$", page, re.MULTILINE)[0]
    assert "supported" in words and "refuted" in words and words.endswith("| beyond |")
    one = read_json(folder / "runs/oracle_s12.json")
    mine = re.search(r"^\| oracle_s12 \| (.*) \|$", page, re.MULTILINE)[1].split(" | ")
    assert [float(mine[0]), float(mine[2])] == [round(one["top1"], 2), round(one["memory"]["episode_bits"], 2)]


def test_a_part_of_the_runs_is_named_and_gives_no_word(folder, capsys):
    gone = ["oracle_s12", "lookalikes_s16", "temperature01_s11"]
    for name in gone:
        (folder / f"runs/{name}.json").unlink()
    verdict([str(folder)])
    said = capsys.readouterr().out
    assert said.startswith("separation: undecided: 42 of 45 runs\nstill missing: ") and all(
        name in said for name in gone
    )
    page = (folder / "verdict.md").read_text()
    assert re.search("Runs still missing: .*lookalikes 1.*oracle 1", page) and "| oracle_s12 |" not in page
    assert "42 of 45 runs" in page and not re.search(WORDS, page)


def test_one_run_is_enough_for_pictures_and_none_is_refused(tmp_path):
    refused(lambda: write_verdict(experiment(), tmp_path, tmp_path / "verdict", tmp_path), "holds no run of the rule")
    write_runs(tmp_path, experiment(), leave_out=44)
    lines = write_verdict(experiment(), tmp_path, tmp_path / "verdict", tmp_path)
    assert lines[0] == "separation: undecided: 1 of 45 runs" and len(list(tmp_path.glob("*.png"))) == 4


def test_a_bare_memory_record_is_enough(tmp_path):
    """Runs without cues, ranks, z and predictions: what is not there is left out."""
    bare = [run(experiment(), variant) for variant in experiment().rule.arm_of]
    for each in bare:
        each["memory"] = {key: each["memory"][key] for key in ("episode_bits", "concept_bits")}
        del each["z"], each["correct"]
        write_json(tmp_path / f"runs/{each['name']}.json", each)
    lines = write_verdict(experiment(), tmp_path, tmp_path / "verdict", tmp_path)
    assert lines[0] == "separation: complete" and "image" not in (tmp_path / "verdict.md").read_text()


def test_the_runs_of_the_record_are_still_those_of_the_presets_rule():
    """A new key of a training's parameters is in the digest, and would put hours of runs aside."""
    record = ROOT / "docs/results/2026-11-30-verdict"
    rules = [read_experiment(path).rule for path in (record / "params.yaml", ROOT / "presets/hypothesis.yaml")]
    assert rules[0].digest == rules[1].digest
    assert read_runs(record / "runs", read_experiment(record / "params.yaml"))
