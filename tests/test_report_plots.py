"""The charts of `dvc plots show`: templates filled by DVC and drawn without a browser, and the offline page."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import vl_convert
import yaml
from dvc_render.html import HTML
from dvc_render.vega import VegaRenderer

from lib.offline_plots import LIBRARY_FILE, VEGA_LITE
from lib.report.figures import COLORS

TEMPLATES = Path(".dvc/plots")
PAGE = Path(".dvc/plots.html")
VARIANTS = ("simclr", "joint", "dual")
SEEDS = 2


def draw(template: str, rows: list[dict[str, str]], x: str, y: str) -> str:
    """The SVG of a chart whose ``rows`` are text, as DVC reads them from a CSV file."""
    renderer = VegaRenderer(rows, "chart", template=template, template_dir=str(TEMPLATES), x=x, y=y, title="The title")
    spec = json.dumps(renderer.get_filled_template())
    assert "<DVC_METRIC" not in spec
    return vl_convert.vegalite_to_svg(json.loads(spec), vl_version=VEGA_LITE)


def words(svg: str) -> list[str]:
    """Every text of the picture, in its order."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def curve_rows(revisions: tuple[str, ...]) -> list[dict[str, str]]:
    def row(revision: str, group: str, seed: int, epoch: int) -> dict[str, str]:
        own = {"group": group, "variant": f"{group}_{seed}", "epoch": str(epoch), "rev": revision}
        return {**own, "loss": str(6 - epoch / 5), "knn": str(40 + epoch) if epoch % 2 == 0 else ""}

    return [row(*each) for each in product(revisions, VARIANTS, range(SEEDS), range(1, 5))]


@pytest.mark.parametrize("revisions", [("workspace",), ("workspace", "HEAD")])
@pytest.mark.parametrize(("column", "points"), [("loss", 4), ("knn", 2)])
def test_curves_have_one_line_per_run_and_revision_in_the_look_of_its_group(revisions, column, points):
    svg = draw("curves_by_variant", curve_rows(revisions), "epoch", column)
    marks = re.findall(r'aria-roledescription="(line mark|point)"', svg)
    lines = len(VARIANTS) * SEEDS * len(revisions)
    assert (marks.count("line mark"), marks.count("point")) == (lines, lines * points)
    assert {*VARIANTS, *revisions, "The title", "epoch"} <= set(words(svg))
    shapes = re.findall(r'aria-roledescription="point"[^>]*? d="([^"]*)"', svg)
    assert len(shapes) == lines * points and len(set(shapes)) == len(VARIANTS)
    dashes = re.findall(r'aria-roledescription="line mark"[^>]*?stroke-dasharray="([^"]*)"', svg)
    assert len(dashes) == lines and len(set(dashes)) == len(revisions)


@pytest.mark.parametrize("revisions", [("workspace",), ("workspace", "HEAD")])
def test_bars_say_their_value_and_their_deviation_over_seeds(revisions):
    bars = [("simclr", "probe top-1", "72.5", "1.5", "41.5"), ("simclr", "kNN top-1", "60.25", "0.75", "")]
    bars.append(("dual · upper", "probe top-1", "69.0", "", ""))
    keys = ("model", "measure", "value", "sd", "floor", "n", "color", "rev")
    rows = [dict(zip(keys, (*bar, "1", COLORS[2], revision))) for revision in revisions for bar in bars]
    svg = draw("bars_by_measure", rows, "value", "model")
    marks = re.findall(r'aria-roledescription="bar"[^>]*?fill="([^"]*)"(?: opacity="([^"]*)")?', svg)
    assert [color for color, _ in marks] == [COLORS[2]] * len(rows)
    assert len({opacity for _, opacity in marks}) == len(revisions)
    deviations = re.findall(r'aria-label="value: ([\d.]+);[^"]*high: ([\d.]+);[^>]*"rule mark"', svg)
    assert sorted(deviations) == sorted([("59.5", "61"), ("71", "74")] * len(revisions))
    assert re.findall(r"untrained encoder of its kind, %: ([\d.]+)", svg) == ["41.5"] * len(revisions)
    shown = words(svg)
    assert [shown.count(text) for text in ("72.50", "60.25", "69.00")] == [len(revisions)] * 3
    assert shown.index("probe top-1") < shown.index("kNN top-1")


def test_what_did_not_train_is_a_dotted_line_and_has_no_part_in_the_colors():
    """Colors go by the order in which the groups come, as `lib.report.charts.looks` gives them."""
    floor = {"group": "floor", "variant": "floor", "epoch": "0", "loss": "", "knn": "33", "rev": "workspace"}
    rows = [floor, *curve_rows(("workspace",))]
    for column in ("loss", "knn"):
        svg = draw("curves_by_variant", rows, "epoch", column)
        assert svg.count('aria-roledescription="rule mark"') == (column == "knn") and "floor" not in words(svg)
        lines = re.findall(r'aria-roledescription="line mark"[^>]*? stroke="([^"]*)"', svg)
        assert list(dict.fromkeys(lines)) == list(COLORS[: len(VARIANTS)])


def test_points_have_their_names_colors_and_deviations_in_each_revision():
    keys = ("group", "concept_bits", "concept_bits_sd", "episode_bits", "episode_bits_sd", "n", "color", "rev")
    values = (("simclr", "2.3", "0.2", "1.4", "0.1", "3", COLORS[0]), ("joint", "2.0", "", "1.5", "", "1", COLORS[1]))
    rows = [dict(zip(keys, (*each, revision))) for revision in ("workspace", "HEAD") for each in values]
    svg = draw("points", rows, "concept_bits", "episode_bits")
    points = re.findall(r'aria-roledescription="point"[^>]*? d="([^"]*)" fill="([^"]*)"', svg)
    assert [color for _, color in points] == list(COLORS[:2]) * 2 and len({shape for shape, _ in points}) == 2
    assert [words(svg).count(name) for name in ("simclr", "joint", "workspace", "HEAD")] == [2, 2, 1, 1]
    assert svg.count("concept_bits: 2.1; episode_bits: 1.4; right: 2.5") == 2


@pytest.mark.parametrize("revisions", [("workspace",), ("workspace", "HEAD")])
def test_confusion_has_one_matrix_per_group_and_revision_three_in_a_line(revisions):
    cells = (("cat", "cat", "90.0"), ("cat", "dog", "10.0"), ("dog", "dog", "100.0"))
    keys = ("rev", "group", "actual", "predicted", "percent", "images")
    rows = [dict(zip(keys, (*where, *cell, "5"))) for *where, cell in product(revisions, VARIANTS, cells)]
    svg = draw("confusion_by_variant", rows, "predicted", "actual")
    assert svg.count('aria-roledescription="rect mark"') == len(rows)
    assert [words(svg).count(text) for text in ("90", "10")] == [len(rows) // 3] * 2
    ends = [f" ({revision})" for revision in revisions] if len(revisions) > 1 else [""]
    titles = [f"{group}{end}" for end in ends for group in VARIANTS]
    assert [text for text in words(svg) if text in titles] == titles
    assert words(svg).count("predicted") == 3


def test_the_page_takes_nothing_from_elsewhere():
    page = HTML(PAGE.read_text(encoding="utf-8"))
    page.with_scripts(VegaRenderer.SCRIPTS).with_element("<div id='x'></div>")
    html = page.embed()
    assert "<div id='x'></div>" in html
    assert "//" not in html.replace("</", "<")
    assert re.findall(r'src="([^"]*)"', html) == [f"../{LIBRARY_FILE.as_posix()}"]


def test_every_plot_of_the_pipeline_has_its_template():
    plots = yaml.safe_load(Path("dvc.yaml").read_text())["plots"]
    templates = {settings["template"] for plot in plots if isinstance(plot, dict) for settings in plot.values()}
    assert templates == {path.stem for path in TEMPLATES.glob("*.json")}
