"""``python -m lib experiments``: what differs, in a hundred characters, from what DVC says of its experiments."""

from typing import Any

import pytest

from lib.experiments import WIDTH, rows_of, series_of, swept, table, untrained
from lib.report.figures import COLORS, GRAY
from lib.report.figures_sweep import sweep_figure
from tests.faults.refusals import refused


def revision(name: str | None, top1: dict[str, float], **params: Any) -> dict[str, Any]:
    """As ``dvc exp show --json`` has it."""
    variants = {variant: {"method": "simclr"} for variant in top1}
    metrics = {
        f"metrics/{variant}.json": {"data": {"top1": value, "z": {"top1": 1}}} for variant, value in top1.items()
    }
    metrics |= {f"metrics/memory/{variant}.json": {"data": {"episode_bits": 2.0}} for variant in top1}
    read = {"params.yaml": {"data": {**params, "variants": variants}}}
    return {"name": name, "data": {"params": read, "metrics": metrics}}


def experiments(*runs: dict[str, Any], here: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    head = revision("main", {"simclr": 60.0, "joint": 61.0}, gamma=0.01, optimizer={"lr": 0.001})
    return [here or head, {**head, "experiments": [{"name": run["name"], "revs": [run]} for run in runs]}]


def test_experiments_have_what_they_changed_and_the_variants_that_differ():
    changed = revision("bold", {"simclr": 60.0, "joint": 63.5}, gamma=0.1, optimizer={"lr": 0.002})
    added = revision("more", {"simclr": 60.0, "joint": 61.0, "push": 59.25}, gamma=0.01, optimizer={"lr": 0.001})
    shown = experiments(changed, added, {"name": None, "rev": "b40ce21f", "data": None})
    assert list(table(rows_of(shown, "top1"))) == [
        "experiment   changed                        simclr  joint   push",
        "last commit                                  60.00  61.00      -",
        "bold         gamma=0.1, optimizer.lr=0.002   60.00  63.50      -",
        "more         variants.push.method=simclr     60.00  61.00  59.25",
        "b40ce21      did not end                         -      -      -",
        "",
    ]
    shown[1]["experiments"] = shown[1]["experiments"][:1]
    here = revision(None, {"simclr": 60.0, "joint": 64.0}, gamma=0.5, optimizer={"lr": 0.001})
    told = [row.name for row in rows_of(experiments(changed, here=here), "top1")]
    assert told == ["last commit", "workspace", "bold"]
    lines = list(table(rows_of(shown, "episode_bits")))
    assert lines[-1] == "the same in all: simclr 2.00, joint 2.00" and lines[0] == "experiment   changed"


def test_many_variants_and_long_changes_keep_within_the_width():
    names = [f"variant_number_{number}" for number in range(45)]
    runs = [revision(f"sweep-{seed}", dict.fromkeys(names, float(seed)), seed=seed, note="x" * 90) for seed in range(4)]
    runs[2]["name"] = "a_name_" * 20
    lines = list(table(rows_of(experiments(*runs), "top1")))
    assert max(map(len, lines)) <= WIDTH and all(any(name in line for line in lines) for name in names)
    tables, rows = (sum(line.startswith(start) for line in lines) for start in ("experiment ", "sweep-3"))
    assert rows == tables > 5
    long = {"variants.supervised_crop_flip.augment.jitter": 0.4}
    alone = revision("e1", {"simclr": 60.0, "joint": 61.0}, gamma=0.01, optimizer={"lr": 0.001}, **long)
    assert "e1           variants.su…ip.augment.jitter=0.4" in list(table(rows_of(experiments(alone), "top1")))


def test_a_sweep_is_drawn_by_the_number_that_it_changed():
    runs = [
        revision(f"g{gamma}", {"simclr": 60.0, "joint": 61 + gamma}, gamma=gamma, optimizer={"lr": 0.001})
        for gamma in (1.0, 0.001, -0.1)
    ]
    again = revision("newest", {"simclr": 60.0, "joint": 70.0}, gamma=1.0, optimizer={"lr": 0.001})
    key, by_value = swept(rows_of(experiments(again, *runs), "top1"))  # DVC lists the newest first
    assert key == "gamma" and list(by_value) == [-0.1, 0.001, 0.01, 1.0] and by_value[1.0].name == "newest"
    for row in by_value.values():
        row.params["variants.joint.term"] = "pull"
        row.params["variants.joint_s1.method"] = "simclr"
        row.params["variants.joint_s1.term"], row.params["variants.joint_s1.seed"] = "pull", 1
        row.values["joint_s1"] = row.values["joint"] + 1
        row.params["variants.simclr.epochs"] = 0
    assert series_of(by_value)["joint"][-1] == (1.0, [70.0, 71.0]) and untrained(by_value) == {"simclr"}
    figure = sweep_figure(key, "top1", series_of(by_value), untrained(by_value))
    (panel,) = figure.axes
    assert [each.get_label() for each in panel.containers] == ["joint", "simclr"] and panel.get_xscale() == "symlog"
    assert [container[0].get_color() for container in panel.containers] == [COLORS[0], GRAY]
    assert list(panel.containers[0][0].get_ydata()) == pytest.approx([61.4, 61.501, 61.5, 70.5])
    low, high = panel.containers[0][2][0].get_segments()[-1][:, 1]
    assert (low, high) == pytest.approx((70.5 - 0.5**0.5, 70.5 + 0.5**0.5))  # deviation of 70 and 71
    runs[0]["data"]["params"]["params.yaml"]["data"]["optimizer"]["lr"] = 0.01
    words = "one number of params.yaml; these differ in gamma, optimizer.lr"
    refused(lambda: swept(rows_of(experiments(*runs), "top1")), words)
    refused(lambda: swept([]), "these differ in none")


def test_a_number_that_one_run_gives_a_variant_is_the_shared_one_in_the_others():
    own = revision("own", {"joint": 62.0}, gamma=0.01)
    own["data"]["params"]["params.yaml"]["data"]["variants"]["joint"]["gamma"] = 0.1
    head = revision("main", {"joint": 61.0}, gamma=0.01)
    key, by_value = swept(rows_of([head, {**head, "experiments": [{"name": "own", "revs": [own]}]}], "top1"))
    assert key == "variants.joint.gamma"
    assert {gamma: row.values["joint"] for gamma, row in by_value.items()} == {0.01: 61, 0.1: 62}
