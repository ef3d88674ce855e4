"""report.html: what it holds, in what order, and how large it may be; test_page_browser.py looks at it in Chromium."""

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from bokeh.models import Whisker
from PIL import Image

from lib.evaluate.neighbors import nearest
from lib.report import tables
from lib.report.page import build, charts, explorer
from lib.report.records import Record, read_record, replicates
from lib.runtime.files import read_arrays, size, write_arrays
from tests.faults.refusals import refused
from tests.report_runs import CLASSES, TEST_IMAGES, write_runs

PULL = {"term": "pull", "temperature": 0.5}
RUNS = {
    "simclr": {"projections": ("z",)},
    "simclr_1": {"seed": 1},
    "joint": {"parts": ("nt_xent", "distance"), "gamma": 0.01, "wrong": 0.4, "options": PULL},
    "dual": {"latents": ("upper", "lower"), "wrong": 0.5, "options": {"latents": "halves"}},
    "untrained": {"epochs": 0, "wrong": 0.6},
}
ORDER = ["simclr", "joint", "dual · upper", "untrained", "dual · lower", "simclr_1"]
IMAGES = numpy.random.default_rng(0).integers(0, 256, (TEST_IMAGES, 3, 16, 16), dtype=numpy.uint8)


def write_page(root: Path, runs: dict[str, dict], **shared) -> list[str]:
    """The page of made-up runs; returns the latents that did not fit."""
    write_runs(root, {variant: settings | shared for variant, settings in runs.items()})
    for variant in runs:
        arrays = read_arrays(root / f"data/tsne/{variant}.npz")
        draw = numpy.random.default_rng([*variant.encode()])
        latents = {name: draw.normal(size=(TEST_IMAGES, 8)) for name in arrays if name not in explorer.BESIDE}
        write_arrays(root / f"data/embeddings/{variant}.npz", latents)
    return build.write_report(SimpleNamespace(variants=dict.fromkeys(runs)), IMAGES, root)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def decoded(numbers: dict) -> numpy.ndarray:
    return numpy.frombuffer(base64.b64decode(numbers["base64"]), f"<u{numbers['bits'] // 8}").astype(int)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    assert write_page(folder, RUNS) == []
    return folder


@pytest.fixture(scope="module")
def page(root) -> str:
    return (root / "report.html").read_text()


@pytest.fixture(scope="module")
def records(root) -> dict[str, Record]:
    return {variant: read_record(variant, root) for variant in RUNS}


def test_neighbors_are_those_of_highest_cosine_and_never_the_point_itself():
    features = numpy.random.default_rng(0).normal(size=(40, 6)).astype(numpy.float32)
    features[7] = 3 * features[5]
    found, distances = nearest(features, 4)
    units = features / numpy.linalg.norm(features, axis=1, keepdims=True)
    for point in range(40):
        others = sorted((float(units[point] @ units[other]) for other in range(40) if other != point), reverse=True)
        assert numpy.allclose(units[found[point]] @ units[point], others[:4]) and point not in found[point]
        assert numpy.allclose(1 - distances[point], others[:4], atol=1e-6)
    assert found[5, 0] == 7 and found[7, 0] == 5
    assert nearest(features[:3], 5)[0].shape == (3, 2)


def test_coordinates_keep_one_scale_and_a_collapsed_latent_stays_at_one_place():
    points = numpy.array([[0.0, 10.0], [4.0, 10.5], [2.0, 12.0]])
    steps = explorer.squared(points)
    assert steps.min() == 0 and steps.max() == 65535
    assert numpy.allclose((steps - steps[0]) / 65535 * 4, points - points[0], atol=1e-4)
    assert len(numpy.unique(explorer.squared(numpy.ones((5, 2))))) == 1


@pytest.mark.parametrize(("largest", "bits"), [(65535, 16), (65536, 32)])
def test_whole_numbers_come_back_from_their_text(largest, bits):
    numbers = numpy.array([[3, 0], [largest, 7]])
    encoded = explorer.encode(numbers)
    assert encoded["bits"] == bits and decoded(encoded).tolist() == numbers.ravel().tolist()


def test_every_thumbnail_is_at_its_place_and_many_are_smaller(monkeypatch):
    shades = numpy.arange(7) * 40
    images = numpy.broadcast_to(shades[:, None, None, None], (7, 3, 16, 16)).astype(numpy.uint8)
    for pixels, tile in ((10**6, 16), (7 * 8**2, 8)):
        monkeypatch.setattr(explorer, "SHEET_PIXELS", pixels)
        sheet, side = explorer.thumbnails(images)
        assert side == tile and sheet.size == (3 * tile, 3 * tile)
        picture = Image.open(io.BytesIO(base64.b64decode(explorer.webp(sheet).partition(",")[2])))
        drawn = numpy.asarray(picture.convert("L")).reshape(3, tile, 3, tile).mean((1, 3)).ravel()
        assert numpy.abs(drawn[:7] - shades).max() < 4


def test_the_page_holds_every_latent_best_first_with_its_neighbors(root, page):
    data = data_of(page)
    assert [plane["name"] for plane in data["planes"]] == ORDER
    shown = read_arrays(root / "data/tsne/dual.npz")
    assert decoded(data["points"]["labels"]).tolist() == shown["labels"].tolist()
    features = read_arrays(root / "data/embeddings/dual.npz")["lower"][shown["indices"]]
    plane = data["planes"][ORDER.index("dual · lower")]
    assert decoded(plane["near"]).reshape(-1, 5).tolist() == nearest(features, 5)[0].tolist()
    assert decoded(plane["xy"]).reshape(-1, 2).tolist() == explorer.squared(shown["lower"]).astype(int).tolist()


def test_the_page_is_bounded_by_its_bytes_and_names_what_is_left_out(tmp_path, monkeypatch, page):
    one = len(json.dumps(data_of(page)["planes"][0]))
    monkeypatch.setattr(build, "MOST_BYTES", len(page.encode()) - 2 * one)
    left_out = write_page(tmp_path, RUNS)
    assert left_out == ORDER[-len(left_out) :] and 2 <= len(left_out) <= 3
    smaller = (tmp_path / "report.html").read_text()
    assert len(smaller.encode()) <= build.MOST_BYTES
    assert f"stays below {size(build.MOST_BYTES)}: {', '.join(left_out)}." in smaller
    assert [plane["name"] for plane in data_of(smaller)["planes"]] == ORDER[: -len(left_out)]
    monkeypatch.setattr(build, "MOST_BYTES", 1)
    assert write_page(tmp_path, RUNS) == ORDER
    assert 'id="planes"' not in (tmp_path / "report.html").read_text()


def test_planes_of_other_images_are_refused(records, tmp_path):
    write_runs(tmp_path, RUNS)
    shown = read_arrays(tmp_path / "data/tsne/dual.npz")
    write_arrays(tmp_path / "data/tsne/dual.npz", shown | {"indices": shown["indices"][::-1]})
    words = "data/tsne/dual.npz shows other images than the rest; run dvc repro"
    refused(lambda: explorer.read_planes(replicates(records.values()), tmp_path), words)


def test_each_column_of_the_table_is_explained_by_the_page_that_has_the_legends(records):
    known = build.legends(Path(tables.LEGEND).read_text())
    table = tables.summary(tables.result_rows([*records.values()]))
    table = table.assign(delta_simclr=1.0, classes=100)
    names = {*tables.accuracy_columns(table).values(), *tables.accuracy_columns(table.assign(mode="finetune")).values()}
    assert {"n", "Δ simclr", "Dose λ, %", "Fine-tuned top-5"} < names
    told = {name: build.column_legend(name, known) for name in names}
    assert not [name for name, text in told.items() if len(text) < 40 or re.search(r"\*\*|`|\]\(", text)]
    assert told["n"].startswith("Replicates: variants that differ in seed")
    assert told["kNN top-1"].startswith("kNN: the k nearest training images")
    assert "Top-5 with ten" in told["Probe top-5"] and "Top-5" not in told["Probe top-1"]


def test_names_are_text_and_nothing_is_fetched(tmp_path):
    write_page(tmp_path, {"simclr": {}}, classes=["</script><b>cat</b>", *CLASSES[1:]])
    page = (tmp_path / "report.html").read_text()
    assert "<b>cat" not in page and "&lt;b&gt;cat" in page
    outside_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)=(?!"?(?:#|data:))|url\((?!"data:)', outside_scripts)


def test_the_names_in_a_plane_of_points_cover_neither_points_nor_each_other():
    draw = numpy.random.default_rng(0)
    points = numpy.concatenate([draw.normal(size=(30, 2)), numpy.zeros((10, 2))])
    placed = charts.place_labels(points, [f"variant_{number}" for number in range(40)])
    assert 10 < len(placed) < 40 and placed["text"].iloc[0] == "variant_0"
    room = numpy.array(charts.LABEL_ROOM)
    at = (placed[["x", "y"]].to_numpy() - points.min(0)) / numpy.ptp(points, 0) * room
    width = 7 * placed["text"].str.len()
    left = at[:, 0] + placed["dx"] - placed["align"].map({"left": 0, "center": 0.5, "right": 1}) * width
    middle = at[:, 1] - placed["dy"]
    for one in range(len(placed)):
        for other in range(one):
            beside = left[one] >= left[other] + width[other] or left[other] >= left[one] + width[one]
            assert beside or abs(middle[one] - middle[other]) >= 14, placed.iloc[[one, other]]


def test_accuracies_have_their_deviation_to_both_sides_and_each_row_its_floor(records):
    table = tables.summary(tables.result_rows([*records.values()]))
    chart = charts.accuracy_chart(replicates(records.values()), table)
    first = table.iloc[0]
    source = next(each for each in chart.renderers if "top1_low" in each.data_source.data).data_source.data
    row = list(source["model"]).index(first["model"])
    ends = source["top1_low"].iloc[row], source["top1_high"].iloc[row]
    assert ends == (first["top1"] - first["top1_sd"], first["top1"] + first["top1_sd"]) and first["top1_sd"] > 0
    drawn = {(each.lower, each.upper) for each in chart.select(Whisker)}
    assert ("top1_low", "top1_high") in drawn
    (floors,) = (each.data_source.data for each in chart.renderers if getattr(each.glyph, "marker", None) == "x")
    wanted = table.dropna(subset="floor_top1").set_index("model")["floor_top1"]
    assert dict(zip(floors["y"], floors["x"])) == wanted.to_dict() and len(wanted) > 1


def test_doses_are_drawn_only_where_there_are_any(records):
    for names, drawn in ((list(RUNS), 3), (["simclr", "untrained"], 0)):
        chosen = [records[name] for name in names]
        found = charts.dose_charts(replicates(chosen), tables.summary(tables.result_rows(chosen)))
        assert len(found) == drawn
        for chart in found:
            doses = chart.renderers[-1].data_source.data["dose"].tolist()
            assert doses[0] == 0 and doses[1] == pytest.approx(records["joint"].rows[0]["dose"])


def test_losses_share_a_panel_only_with_their_objective(records, tmp_path):
    records = records | {"hinge": write_runs(tmp_path, {"hinge": {"options": {"loss": "hinge"}, "wrong": 0.7}})[0]}
    titles = [chart.title.text for chart in charts.curve_charts(replicates(records.values()))]
    losses = ["Loss: simclr, nt_xent", "Loss: simclr, hinge, nt_xent"]
    assert titles == ["kNN on the validation images, %", "Embedding std (0: collapsed)", *losses]
