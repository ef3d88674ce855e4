"""t-SNE: the choice of points, the plane, the picture."""

import numpy
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lib.evaluate.tsne import choose_points, embed_plane, select, title
from lib.params.evaluation import Tsne
from lib.report.figures_tsne import TEN_COLORS, class_colors, draw_tsne, remarks, scatter
from lib.runtime.errors import UserError


def blobs(count: int = 150, classes: int = 3) -> tuple[numpy.ndarray, numpy.ndarray]:
    draw = numpy.random.default_rng(0)
    labels = numpy.arange(count) % classes
    return (8 * draw.normal(size=(classes, 6))[labels] + draw.normal(size=(count, 6))).astype("float32"), labels


def test_points_are_the_same_for_all_and_fewer_are_a_subset():
    many, few = choose_points(1000, 300, 0), choose_points(1000, 100, 0)
    assert many[:100].tolist() == few.tolist() and len(set(many.tolist())) == 300
    assert choose_points(1000, 300, 1).tolist() != many.tolist()
    assert sorted(choose_points(50, 300, 0).tolist()) == list(range(50))


def test_select_takes_the_latents_alone():
    features, labels = blobs()
    arrays = {
        "upper": features,
        "z_upper": features[:, :2],
        "labels": labels,
        "indices": numpy.arange(150) + 7,
        "classes": numpy.array(["a", "b", "c"]),
        "latents": numpy.array(["upper"]),
        "projections": numpy.array(["z_upper"]),
    }
    latents, beside = select(arrays, Tsne(points=40))
    rows = choose_points(150, 40, 0)
    assert list(latents) == ["upper"] and numpy.array_equal(latents["upper"], features[rows])
    assert beside["labels"].tolist() == labels[rows].tolist() and beside["indices"].tolist() == (rows + 7).tolist()
    with pytest.raises(UserError, match=r"tsne.perplexity is 40; allowed: below the number of points, here 40"):
        select(arrays, Tsne(points=40, perplexity=40))


def test_plane_separates_blobs_and_repeats_exactly():
    features, labels = blobs()
    tsne = Tsne(perplexity=15, iterations=300)
    plane = embed_plane(features, tsne)
    assert plane.shape == (150, 2) and plane.dtype == numpy.float32
    assert numpy.array_equal(plane, embed_plane(features, tsne))
    distances = numpy.linalg.norm(plane[:, None] - plane[None], axis=2)
    numpy.fill_diagonal(distances, numpy.inf)
    assert (labels[distances.argmin(1)] == labels).mean() > 0.99


@pytest.mark.parametrize("value", [0.0, -3.7, 1e20])
def test_a_collapsed_latent_lies_at_the_origin_and_the_picture_says_so(value, tmp_path):
    rows = numpy.full((40, 6), value, dtype="float32") * (1 + 2e-7 * (numpy.arange(40)[:, None] % 2))
    plane = embed_plane(rows.astype("float32"), Tsne(perplexity=15, iterations=250))
    assert plane.tolist() == [[0.0, 0.0]] * 40 and plane.dtype == numpy.float32
    assert remarks(plane, ["a"]) == " - collapsed: all rows equal"
    assert remarks(numpy.array([[0.0, 0], [0, 1]]), ["a"]) == ""
    draw_tsne(tmp_path / "h.png", plane, numpy.arange(40) % 3, ["a", "b", "c"], "a title")
    assert imread(tmp_path / "h.png").shape[0] == 975


def test_fewer_distinct_rows_than_the_perplexity_do_not_crash():
    features = numpy.random.default_rng(0).normal(size=(2, 5))[numpy.arange(60) % 2]
    plane = embed_plane(features, Tsne(perplexity=15, iterations=250))
    assert numpy.isfinite(plane).all() and numpy.ptp(plane, axis=0).max() > 0


def test_many_classes_have_no_legend_and_the_title_says_so():
    assert remarks(numpy.eye(2), ["x"] * 20) == ""
    assert remarks(numpy.eye(2), ["x"] * 21) == " (21 classes, no legend)"


def test_a_dollar_sign_is_a_dollar_sign(tmp_path):
    features, labels = blobs(30, 2)
    draw_tsne(tmp_path / "h.png", features[:, :2], labels, [r"$\frac", "5$ and 6$"], r"a $\nothing$ title")
    assert (tmp_path / "h.png").stat().st_size > 1000


def test_title_states_fewer_images_than_asked_for():
    assert title("dual", "upper", 5000, 5000, 30.0) == "dual - upper: t-SNE of 5000 test images, perplexity 30"
    assert title("a", "h", 5000, 360, 2.5) == "a - h: t-SNE of all 360 test images (5000 asked for), perplexity 2.5"


@pytest.mark.parametrize("count", [2, 10, 57, 100, 257])
def test_colours_are_distinct(count):
    colors = class_colors(count)
    assert len(colors) == len(set(colors)) == count
    assert tuple(colors[:10]) == TEN_COLORS[:count]


def test_scatter_colours_points_by_label():
    axes = Figure().add_subplot()
    scatter(axes, numpy.array([[0.0, 1], [2, 3]]), numpy.array([1, 0]), ["a", "b"])
    drawn = axes.collections[0]
    assert drawn.get_offsets().tolist() == [[0, 1], [2, 3]]
    assert [round(255 * part) for part in drawn.get_facecolors()[0][:3]] == [0xFF, 0xA9, 0x0E]
    assert len(axes.get_xticks()) == 0


@pytest.mark.parametrize("classes", [3, 40, 120])
def test_picture_is_written(tmp_path, classes):
    features, labels = blobs(200, classes)
    path = tmp_path / "deep" / "h.png"
    draw_tsne(path, features[:, :2], labels, [f"class {i}" for i in range(classes)], "a title")
    pixels = imread(path)
    assert pixels.shape[0] == 975 and pixels.shape[1] > 930
    assert path.read_bytes() != b"" and len(list(path.parent.iterdir())) == 1
