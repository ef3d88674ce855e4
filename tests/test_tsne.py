"""t-SNE compares directions."""

import numpy
import pytest
import sklearn.manifold
from threadpoolctl import threadpool_limits

from lib.evaluate.tsne import embed_2d, title
from lib.params.evaluation import Tsne

TSNE = Tsne(points=60, perplexity=5.0, iterations=250)


@pytest.fixture
def features() -> numpy.ndarray:
    """Three groups of directions, of which each has vectors of every length."""
    draw = numpy.random.default_rng(0)
    return numpy.eye(3)[numpy.arange(60) % 3] + 0.1 * draw.normal(size=(60, 3))


def test_the_length_of_a_latent_changes_no_point(features):
    powers = 2.0 ** numpy.random.default_rng(1).integers(-6, 6, (60, 1))  # exact in floating point
    embedded = embed_2d(features, TSNE)
    assert numpy.array_equal(embedded, embed_2d(features * powers, TSNE)) and numpy.ptp(embedded) > 0
    near = numpy.linalg.norm(embedded[:, None] - embedded, axis=2) + numpy.diag(numpy.full(60, numpy.inf))
    assert (near.argmin(1) % 3 == numpy.arange(60) % 3).mean() > 0.9


def test_a_zero_vector_stays_zero_and_equal_directions_have_collapsed(features):
    features[7] = 0
    assert numpy.isfinite(embed_2d(features, TSNE)).all()
    assert not embed_2d(numpy.zeros((60, 3)), TSNE).any()
    assert not embed_2d(numpy.arange(1, 61)[:, None] * features[:1], TSNE).any()


def test_iterations_are_counted_and_the_points_are_those_of_scikit_learn(features, monkeypatch, capsys):
    monkeypatch.setattr("lib.runtime.progress.QUIET_SECONDS", 0.0)
    features = features.astype(numpy.float32)
    shown = embed_2d(features, TSNE, "simclr: t-SNE of h")
    said = capsys.readouterr().out
    assert said.startswith("simclr: t-SNE of h: step 2 of 5, about ") and said.endswith(" left\n")
    with threadpool_limits(1):
        plain = sklearn.manifold.TSNE(
            perplexity=5.0, max_iter=250, random_state=0, init="pca", learning_rate="auto", n_jobs=1
        ).fit_transform(features / numpy.linalg.norm(features, axis=1, keepdims=True))
    assert numpy.array_equal(shown, plain)
    assert numpy.array_equal(shown, embed_2d(features, TSNE)) and capsys.readouterr().out == ""


def test_the_picture_says_what_was_done():
    assert title("simclr", "h", 60, 60, 5.0) == "simclr - h: t-SNE of 60 test images, L2-normalized, perplexity 5"
