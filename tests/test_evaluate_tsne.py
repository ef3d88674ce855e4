"""t-SNE: the choice of points, the 2-D embedding, the picture."""

import numpy
import pytest
from matplotlib.image import imread

from lib.evaluate.tsne import choose_points, embed_2d, select
from lib.params.evaluation import Tsne
from lib.report.figures_tsne import draw_tsne, remarks
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
    names = {"latents": numpy.array(["upper"]), "projections": numpy.array(["z_upper"])}
    known = {"labels": labels, "indices": numpy.arange(150) + 7, "classes": numpy.array(["a", "b", "c"])}
    arrays = {"upper": features, "z_upper": features[:, :2], **known, **names}
    latents, beside = select(arrays, Tsne(points=40))
    rows = choose_points(150, 40, 0)
    assert list(latents) == ["upper"] and numpy.array_equal(latents["upper"], features[rows])
    assert beside["labels"].tolist() == labels[rows].tolist() and beside["indices"].tolist() == (rows + 7).tolist()
    with pytest.raises(UserError, match=r"tsne.perplexity is 40; allowed: below the number of points, here 40"):
        select(arrays, Tsne(points=40, perplexity=40))


def test_the_embedding_separates_blobs_and_repeats_exactly():
    features, labels = blobs()
    tsne = Tsne(perplexity=15, iterations=300)
    points = embed_2d(features, tsne)
    assert points.shape == (150, 2) and points.dtype == numpy.float32
    assert numpy.array_equal(points, embed_2d(features, tsne))
    distances = numpy.linalg.norm(points[:, None] - points[None], axis=2)
    numpy.fill_diagonal(distances, numpy.inf)
    assert (labels[distances.argmin(1)] == labels).mean() > 0.99


@pytest.mark.parametrize("value", [0.0, -3.7, 1e20])
def test_a_collapsed_latent_lies_at_the_origin_and_the_picture_says_so(value, tmp_path):
    latent = numpy.full((40, 6), value) * (1 + 2e-7 * (numpy.arange(40)[:, None] % 2))
    points = embed_2d(latent.astype("float32"), Tsne(perplexity=15, iterations=250))
    assert points.tolist() == [[0.0, 0.0]] * 40 and points.dtype == numpy.float32
    assert remarks(points, ["a"]).startswith(" - collapsed") and remarks(numpy.eye(2), ["a"]) == ""
    draw_tsne(tmp_path / "h.png", points, numpy.arange(40) % 3, ["a", "b", "c"], "a title")
    assert imread(tmp_path / "h.png").shape[0] == 975


@pytest.mark.parametrize("classes", [[r"$\frac", "5$ and 6$"], [f"class {i}" for i in range(120)]])
def test_a_picture_is_written_and_a_dollar_sign_is_a_dollar_sign(tmp_path, classes):
    features, labels = blobs(120, len(classes))
    path = tmp_path / "deep" / "h.png"
    draw_tsne(path, features[:, :2], labels, classes, r"a $\nothing$ title")
    pixels = imread(path)
    assert pixels.shape[0] == 975 and pixels.shape[1] > 930 and len(list(path.parent.iterdir())) == 1
