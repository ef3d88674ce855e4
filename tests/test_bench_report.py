"""The benchmark's arithmetic and its page, from made-up measurements; no peer is imported and nothing is timed."""

import ast
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from lib.encoders.small_maps import SmallMapConv2d
from torch.utils.flop_counter import FlopCounterMode

from bench import ceiling, leftthomas, ours, parts, systems
from bench.accuracy import as_the_recipe
from bench.plan import CUDA, CUDA_SECTIONS, FULL, PARTS, QUICK, SECTIONS, name_of, rows, sweep_of, worker_counts
from bench.ratios import Race, Spread, fractions, race, race_verdict, ratios, spread, verdict
from bench.report import document
from bench.run import kept, parse
from bench.systems import system, system_params
from lib.core.trainer import Pretrainer
from lib.runtime.errors import UserError
from lib.views.augment import normalize
from tests import examples
from tests.examples import CPU, ROOT


def test_ratios_are_taken_within_a_repetition():
    assert ratios([1.0, 2.0, 4.0], [3.0, 4.0, 20.0]) == [3.0, 2.0, 5.0]
    assert ratios([1.0, None, 2.0], [3.0, 4.0, None]) == [3.0, None, None]


def test_the_spread_leaves_out_what_was_not_measured():
    assert spread([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0, 2)
    assert spread([None]) is None and spread([]) is None


def test_the_median_decides_whether_a_target_is_met():
    assert verdict(Spread(3.0, 1.0, 9.0, 3), 3.0) == "met"
    assert verdict(Spread(2.99, 2.0, 9.0, 3), 3.0) == "missed"
    assert verdict(None, 3.0) == "not measured"
    assert verdict(Spread(3.0, 3.0, 3.0, 1), None) == ""


def test_the_share_of_the_ceiling():
    assert fractions(6.0, [2.0, None, 3.0], [6.0, 6.0, None]) == [0.5, None, None]
    assert fractions(None, [2.0], [6.0]) == [None]


@pytest.mark.parametrize(
    ("ours", "peer", "trained", "expected", "word"),
    [
        (10.0, 50.0, 50.0, Race(5.0, False), "met"),
        (10.0, 39.0, 39.0, Race(3.9, False), "missed"),
        (10.0, None, 50.0, Race(5.0, True), "met"),  # stopped, but later than the target asks
        (10.0, None, 30.0, Race(3.0, True), "undecided"),
        (None, 50.0, 50.0, Race(None, False), "missed"),
    ],
)
def test_time_to_accuracy(ours, peer, trained, expected, word):
    assert race(ours, peer, trained) == expected
    assert race_verdict(expected, 4.0) == word


def test_the_peer_is_judged_on_images_as_it_was_trained_on():
    data = as_the_recipe(examples.images(count=4))
    picture = data.train_images[:1]
    plain = leftthomas.PLAIN(picture[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(normalize(picture, data.mean, data.std)[0], plain)


def test_the_plan_holds_every_target():
    targets = {
        (row.section, row.settings.get("encoder"), arm): goal
        for row in rows(FULL, list(SECTIONS))
        for arm, goal in row.targets.items()
    }
    assert targets == {
        ("data", "small", "leftthomas.data"): 10.0,
        ("data", "small", "with_kornia.data"): 4.0,
        ("step", "small", "leftthomas.step"): 2.8,
        ("step", "small", "with_lightly.step"): 2.8,
        ("step", "resnet18", "leftthomas.step"): 3.0,
        ("step", "resnet18", "with_lightly.step"): 3.0,
        ("step", "resnet50", "leftthomas.step"): 2.5,
        ("step", "resnet50", "with_lightly.step"): 2.5,
        ("pipeline", None, "pipeline.in_turn"): 1.0,
    }
    assert {row.section for row in rows(FULL, ["tsne", "data"])} == {"tsne", "data"}


def test_every_arm_is_a_function_with_a_name_of_its_own():
    for row in rows(FULL, list(SECTIONS)) + rows(CUDA, list(CUDA_SECTIONS)):
        assert len({name_of(arm) for arm in row.arms}) == len(row.arms)
        for arm in row.arms:
            module, function = arm.split(".")
            tree = ast.parse((ROOT / f"bench/{module}.py").read_text())
            assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize(
    "arm",
    [
        *(arm for arm in PARTS if arm not in ("parts.compiled", "parts.side_by_side")),
        "parts.started_singly",
        "parts.convolutions",
    ],
)
def test_a_step_with_a_part_done_otherwise_runs(arm):
    settings = {"encoder": "small", "batch": 4, "train": 16, "test": 4, "warm": 0.0, "seconds": 0.0, "least": 1}
    assert getattr(parts, arm.removeprefix("parts."))(settings, replace(CPU, threads=2))["calls"] == 1


@pytest.mark.parametrize(
    ("arm", "left"),
    [(parts.plain_convolutions, 0), (parts.in_turn, 10), (systems.plain_convolutions, 0), (systems.system, 6)],
)
def test_torchs_convolutions_take_the_place_of_those_of_small_maps(arm, left, monkeypatch):
    """10 are in the small encoder, 6 in VGG-6."""
    counts, step = set(), Pretrainer.step
    monkeypatch.setattr(
        Pretrainer,
        "step",
        lambda run, *where: (
            counts.add(sum(type(module) is SmallMapConv2d for module in run.method.modules())),
            step(run, *where),
        ),
    )
    arm(
        {
            "encoder": "small",
            "variant": "cpc",
            "options": {"channels": 4},
            "batch": 4,
            "train": 16,
            "test": 4,
            "warm": 0.0,
            "seconds": 0.0,
            "least": 1,
        },
        CPU,
    )
    assert counts == {left}


def test_convolutions_alone_are_those_of_a_step(monkeypatch):
    """All that `ceiling.flops` counts of a step, but for the projector of both views, forward and twice backward.

    It counts the products with padding, too, as is usual: here none is left out.
    """
    monkeypatch.setattr("lib.encoders.small_maps.OUTPUTS", 0)
    settings = {"encoder": "small", "batch": 4, "train": 16, "test": 4, "warm": 0.0, "seconds": 0.0}

    def counted(calls: int) -> int:
        with FlopCounterMode(display=False) as counter:
            assert parts.convolutions({**settings, "least": calls}, CPU)["calls"] == calls
        return counter.get_total_flops()

    projector = 3 * 2 * 4 * 2 * (512 * 512 + 512 * 128)
    assert counted(2) - counted(1) == ceiling.flops(settings, CPU)["flops"] - projector


def test_the_page_says_what_the_convolutions_alone_would_allow():
    found = record()
    found["rows"][2]["runs"]["parts.convolutions"] = [{"seconds": 0.25, "precision": "fp32"}] * 2
    assert (
        "nothing beside them: leftthomas/SimCLR recipe 20.00 (20.00 to 20.00), lightly 20.00 (20.00 to 20.00)."
        in document(found)
    )


@pytest.mark.parametrize("preset", ["study", "cpu", "demo", "codes"])
def test_simclr_is_had_with_any_preset(preset, monkeypatch):
    monkeypatch.chdir(ROOT)
    params = ours.preset_params(preset, ["epochs=3"])
    assert (params.method, params.epochs) == ("simclr", 3)
    assert params.options.get("temperature") == (0.2 if preset == "cpu" else 0.5)


def test_workers_are_chosen_for_arms_that_have_them():
    assert worker_counts(2) == [0, 1, 2, 4] and worker_counts(64) == [0, 1, 16]
    settings = rows(FULL, ["step"])[2].settings
    assert sweep_of("ours.step", settings, FULL) is None
    arm, found = sweep_of("leftthomas.step", settings, FULL)
    assert (arm, found["encoder"], found["batch"]) == ("leftthomas.step", "resnet50", 64)
    assert sweep_of("leftthomas.probe", settings, FULL)[0] == "leftthomas.data"


def record(**changes):
    """A run of the data path and one step, two repetitions: ours 0.5 s, the peers ten times that."""

    def runs(arm):
        own = {"seconds": 0.5 if arm.startswith("ours") else 5.0, "memory": 700.0, "workers_memory": 0.0}
        return [{**own, "precision": "fp32"}] * 2

    found = []
    for row in rows(QUICK, ["data", "step"])[:2]:
        found.append(
            {**vars(row), "flops": 1e9 if row.section == "step" else None, "runs": {arm: runs(arm) for arm in row.arms}}
        )
    ceiling = {**vars(rows(QUICK, ["ceiling"])[0]), "flops": None, "runs": {"ceiling.measure": [{"fp32": 4e9}] * 2}}
    machine = {
        "processor": "a processor",
        "family": "family 1",
        "flags": [],
        "processors": 2,
        "used": 2,
        "threads": 2,
        "precision": "fp32",
        "memory_gib": 8.0,
        "load": 0.1,
        "quiet": True,
        "system": "Linux",
    }
    return {
        "date": "today",
        "commit": "abc",
        "quick": False,
        "whole": True,
        "repetitions": 2,
        "machine": machine,
        "versions": {"torch": "2"},
        "workers": {"a": {"chosen": 1, "seconds": {"0": 2.0, "1": 1.0}}},
        "accuracy": {"skipped": "no images"},
        "rows": [ceiling, *found],
        "before": [],
        "sizes": vars(QUICK),
        "sections": ["ceiling", "data", "step"],
        **changes,
    }


def test_the_page_says_what_was_met_and_what_was_not_run():
    page = document(record())
    assert "| Data path alone, two views of 32 images | kornia | 10.00 (10.00 to 10.00) | 4 | met |" in page
    assert "| Time to accuracy | leftthomas/SimCLR recipe | not run | 4 | not run |" in page
    assert "Not run: no images." in page and "not quiet" not in page and "mean nothing" not in page
    assert "50 %" in page  # 1 GFLOP in 0.5 s of 4 GFLOP/s


def test_every_system_that_trains_has_a_row():
    plan = {row.name: row for row in rows(FULL, ["systems"])}
    assert list(plan) == [name for name, block in examples.every_variant().items() if block.get("epochs", 1)]
    assert plan["simclr"].images == 256 and plan["cpc"].images == plan["cpc"].settings["batch"] == 64
    assert system_params()["simclr"].epochs == 12  # of preset all


def test_a_system_is_timed_at_both_ends_of_its_training(monkeypatch):
    """Where the second layer of filters learns in place of the first one."""
    seen, step = [], Pretrainer.step
    monkeypatch.setattr(
        Pretrainer,
        "step",
        lambda run, epoch, *where: (seen.append((epoch, run.method.now)), step(run, epoch, *where))[1],
    )
    settings = {
        "variant": "patch_filters_two",
        "train": 64,
        "test": 4,
        "batch": 16,
        "warm": 0.0,
        "seconds": 0.0,
        "least": 1,
    }
    found = system(settings, CPU)
    assert seen == [(0, 1)] * 3 + [(11, 2)] * 3
    assert found["calls"] == 2 and found["steps"] == 4 and found["seconds"] == (found["first"] + found["last"]) / 2


def test_the_page_of_systems():
    row = rows(replace(QUICK, systems=(400, None)), ["systems"])[0]
    runs = [{"seconds": seconds, "steps": 195, "memory": 700.0, "workers_memory": 0.0} for seconds in (0.5, 0.6, 1.0)]
    page = document(record(rows=[{**vars(row), "flops": None, "runs": {row.arms[0]: runs}}]))
    assert "| simclr | 256 | 600 (500 to 1,000) ms | 427 | 117 s | 700 |" in page
    page = document(record(rows=[{**vars(row), "flops": None, "runs": {row.arms[0]: [{"error": "failed"}]}}]))
    assert "| simclr | 256 | not measured | not measured | not measured |  |" in page


def test_the_page_of_a_gpu():
    """Its sections alone, its memory, a ceiling in tf32, what others published; batches that keep it busy."""
    plan = rows(replace(CUDA, train=400), ["ceiling", "step"])
    assert [row.settings["batch"] for row in plan if row.section == "step"] == [256, 128, 64, 512, 512]
    runs = [{"seconds": 0.5, "memory": 700.0, "workers_memory": 0.0, "device_memory": 321.0, "precision": "tf32"}]
    ceiling = {**vars(plan[0]), "flops": None, "runs": {"ceiling.measure": [{"fp32": 4e9, "tf32": 8e9, "bf16": 16e9}]}}
    steps = [{**vars(row), "flops": 1e9, "runs": dict.fromkeys(row.arms, runs)} for row in plan[1:]]
    gpu = {**record()["machine"], "gpu": "a GPU, 80 GiB, CUDA 13", "compile": "graphs"}
    page = document(record(machine=gpu, rows=[ceiling, *steps]))
    assert "- a GPU, 80 GiB, CUDA 13: ours and the peers compute there" in page and "CUDA graphs" in page
    assert "| tf32 | 0.008 " in page and "| 321 |" in page and "| 25 % |" in page
    assert "4,202 images/s with resnet18" in page and "## t-SNE" not in page
    assert "| tf32 |" not in document(record()) and "GPU, MiB" not in document(record())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["tsne", "--device", "cuda"],
            "section tsne is of a CPU alone; with --device cuda: ceiling, step, systems, accuracy",
        ),
        (["--workers", "-1"], "--workers is -1; allowed: at least 0"),
        (["stepp"], "there is no section 'stepp'"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench.run", *arguments])
    with pytest.raises(SystemExit):
        parse()
    assert words in capsys.readouterr().err


def test_the_ceiling_may_have_been_measured_less_often_than_a_step():
    found = record()
    found["rows"][0]["runs"]["ceiling.measure"] = [{"fp32": 8e9}]
    assert "25 %" in document(found)


def test_the_page_warns_of_a_busy_machine_and_of_a_quick_run():
    busy = {**record()["machine"], "quiet": False, "load": 3.0}
    page = document(record(machine=busy, quick=True))
    assert "was not quiet: 3.0" in page and "numbers mean nothing" in page


def test_the_page_names_the_settings_of_both_trainings():
    def arm(seconds, trained, **settings):
        return {
            "seconds": seconds,
            "trained": trained,
            "curve": [{"epochs": 2.0, "seconds": trained, "knn": 55.5}],
            "trained_with": settings,
        }

    accuracy = {
        "goal": 55.0,
        "share": 0.25,
        "seed": 0,
        "limit": 600.0,
        "images": "CIFAR-10",
        "ours": arm(100.0, 100.0, optimizer={"lr": 0.001}),
        "peer": arm(None, 500.0, batch_size=256),
    }
    page = document(record(accuracy=accuracy))
    assert "| Time to accuracy | leftthomas/SimCLR recipe | at least 5.00 | 4 | met |" in page
    assert "- ours: optimizer.lr 0.001" in page and "- leftthomas/SimCLR recipe: batch_size 256" in page
    assert "| leftthomas/SimCLR recipe | 500 s, goal not reached | 2.00 | 55.50 |" in page
    accuracy["peer"] = {"error": "failed with status 1"}
    page = document(record(accuracy=accuracy))
    assert "| Time to accuracy | leftthomas/SimCLR recipe | not run | 4 | not run |" in page


def test_a_failed_arm_is_marked():
    found = record()
    found["rows"][1]["runs"]["with_kornia.data"] = [{"error": "failed with status 1"}] * 2
    page = document(found)
    assert "| kornia | not measured | 4 | not measured |" in page and "kornia: 2 of 2 repetitions failed." in page


def test_sections_are_added_to_those_of_the_same_machine():
    earlier, now = record(date="yesterday"), record(accuracy={"skipped": "not asked for"})
    found = kept(earlier, now, ["step", "parts"])
    assert [row["section"] for row in found["rows"]] == ["ceiling", "data"]
    assert [(run["date"], run["sections"]) for run in found["before"]] == [("yesterday", ["ceiling", "data"])]
    with pytest.raises(UserError, match="another version of this benchmark"):
        kept({"rows": []}, now, ["step"])
    assert found["accuracy"] == earlier["accuracy"] and found["workers"] == earlier["workers"]
    page = document({**now, **found, "rows": [*found["rows"], now["rows"][2]]})
    assert "- measured before, yesterday, commit abc, load before the start 0.1: The machine's ceiling, D" in page
    earlier["machine"] = {**earlier["machine"], "load": 2.0, "quiet": False}
    found = kept(earlier, now, ["step"])
    assert "was not quiet: 2.0" in document({**now, **found})


@pytest.mark.parametrize(
    "change", [{"versions": {"torch": "1"}}, {"sizes": vars(FULL)}, {"machine": {**record()["machine"], "threads": 8}}]
)
def test_sections_of_another_machine_are_not_mixed(change):
    with pytest.raises(UserError, match="--add needs the same"):
        kept(record(**change), record(), ["step"])


def test_no_peer_is_needed_to_report():
    code = "import sys, bench.plan, bench.ratios, bench.report; print({'lightly', 'kornia'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
