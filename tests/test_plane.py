"""The plane of concept and episode bits, what is said of it, and the dose of a term, from files of made-up runs."""

from pathlib import Path

import pandas
import pytest

from lib.report import charts, plane, tables
from lib.report.records import replicates
from tests.report_runs import HALVES, PARTS, PULL, write_runs, written

PLANE = {"simclr": {}, "simclr_1": {"seed": 1}, "floor": {"epochs": 0}, "dual": {"latents": HALVES, "gamma": 0.5}}


def plane_of(folder: Path, runs: dict[str, dict], bits: dict[str, tuple[float, float]]):
    """Groups, `summary` and `plane_table` of made-up runs, with their episode and concept bits."""
    records = write_runs(folder, {name: {**settings, "bits": bits[name]} for name, settings in runs.items()})
    groups, table = replicates(records), tables.summary(tables.result_rows(records))
    return groups, table, plane.plane_table(groups, table)


def test_the_plane_has_a_point_for_each_group_and_a_sentence_of_what_it_says(tmp_path):
    bits = {"simclr": (1.0, 2.0), "simclr_1": (1.2, 2.4), "floor": (0.25, 0.5), "dual": (1.5, 1.75)}
    groups, table, points = plane_of(tmp_path, PLANE, bits)
    assert points[["group", "episode_bits", "concept_bits", "n"]].values.tolist() == [
        ["simclr", 1.1, 2.2, 2],
        ["floor", 0.25, 0.5, 1],
        ["dual", 1.5, 1.75, 1],
    ]
    assert points["episode_bits_sd"][0] == pytest.approx(0.02**0.5, abs=1e-4)
    axes = plane.plane_figure(groups, points).axes
    assert len(axes) == 1 and [text.get_text() for text in axes[0].texts] == ["floor"]
    handles, names = axes[0].get_legend_handles_labels()
    assert names == ["dual (1)", "simclr (2)", "floor (1)"], "by height"
    assert [float(handle[0].get_xdata()[0]) for handle in handles] == [1.75, 2.2, 0.5]
    assert plane.plane_sentence(table) == (
        "Which image a degraded one was, dual tells best (1.50 bits); its class, simclr (2.20 bits, and 1.10 of the "
        "image); floor, which did not train, 0.25 and 0.50."
    )
    bits["dual"] = 2.0, 3.0
    said = plane.plane_sentence(plane_of(tmp_path, {name: PLANE[name] for name in ("simclr", "dual")}, bits)[1])
    assert said == (
        "Which image a degraded one was, dual tells best (2.00 bits), and its class too (3.00 bits). "
        "One seed each: a small difference may be the seed's."
    )


def test_points_that_lie_together_are_whole_on_axes_from_zero(tmp_path):
    bits = {"simclr": (6.5, 1.24), "dual": (6.57, 1.27)}
    groups, _, points = plane_of(tmp_path, {name: PLANE[name] for name in bits}, bits)
    axes = plane.plane_figure(groups, points).axes[0]
    for (low, high), key in ((axes.get_xlim(), "concept_bits"), (axes.get_ylim(), "episode_bits")):
        assert low == 0 and high - points[key].max() > 0.025 * high


def test_of_many_points_those_without_labels_have_a_panel_of_their_own(tmp_path):
    runs = {f"joint_{number}": {"gamma": number / 100} for number in range(45)}
    runs |= {"floor": {"epochs": 0}, "ceiling": {"method": "supervised", "supervised": True}}
    groups, _, points = plane_of(tmp_path, runs, {name: (number / 10, 1.0) for number, name in enumerate(runs)})
    figure = plane.plane_figure(groups, points)
    counts = [len(axes.get_legend_handles_labels()[1]) for axes in figure.axes]
    assert counts == [47, 45] and max(figure.get_size_inches()) <= 10
    looks = [(look["color"], look["marker"]) for look in charts.looks(groups).values()]
    assert len(set(looks)) == 47


def test_the_dose_has_a_picture_only_where_a_variant_has_one(tmp_path):
    term = {"joint": {"gamma": 0.01, "options": PULL, "parts": PARTS}, "simclr": {}, "vicreg": {"method": "vicreg"}}
    written(tmp_path, term)
    dosed = pandas.read_csv(tmp_path / "plots/dose/dose.csv")
    assert dosed["group"].tolist() == ["simclr", "joint"]
    assert dosed["dose"].tolist() == pytest.approx([0, 14.38], abs=0.01)
    assert (tmp_path / "plots/dose/dose.png").stat().st_size
    written(tmp_path, {"simclr": {}})
    assert pandas.read_csv(tmp_path / "plots/dose/dose.csv").empty and not (tmp_path / "plots/dose/dose.png").exists()
