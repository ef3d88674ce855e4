"""t-SNE of latents (van der Maaten 2014: Barnes-Hut), the same points for every variant."""

import io
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout

import numpy
import torch

from lib.params.evaluation import Tsne
from lib.runtime.errors import UserError
from lib.runtime.progress import StepProgress
from lib.runtime.seeds import generator

EQUAL = 1e-6  # largest range of a feature, as a share of the largest value, that counts as float32 rounding
TOLD = 50  # iterations between two lines of scikit-learn's


def choose_points(count: int, points: int, seed: int) -> numpy.ndarray:
    """Indices [min(points, count)] into ``count`` images, the first of one permutation fixed by the seed.

    Fewer points are a subset of more points, and no class is drawn last.
    """
    return torch.randperm(count, generator=generator(seed, "tsne points"))[:points].numpy()


def select(arrays: dict[str, numpy.ndarray], tsne: Tsne) -> tuple[dict[str, numpy.ndarray], dict[str, numpy.ndarray]]:
    """From an embeddings file: each latent [P, D] at the chosen points, and what is written beside its embedding."""
    rows = choose_points(len(arrays["labels"]), tsne.points, tsne.seed)
    if tsne.perplexity >= len(rows):
        raise UserError(
            f"params.yaml: tsne.perplexity is {tsne.perplexity:g}; allowed: below the number of points, "
            f"here {len(rows)} of {len(arrays['labels'])} {kind_of(arrays)}; lower it"
        )
    beside = {"labels": arrays["labels"][rows], "indices": arrays["indices"][rows], "classes": arrays["classes"]}
    return {name: arrays[name][rows] for name in arrays["latents"].tolist()}, beside


class _Said(io.TextIOBase):
    """Takes what scikit-learn's t-SNE says of its iterations, which calls nothing back, and says how far it is."""

    def __init__(self, progress: StepProgress, iterations: int) -> None:
        self.progress, self.iterations, self.shown = progress, iterations, sys.stdout

    def write(self, text: str) -> int:
        with redirect_stdout(self.shown):
            for done in re.findall(r"Iteration (\d+)", text):
                self.progress.reach(int(done) / self.iterations)
        return len(text)


def embed_2d(features: numpy.ndarray, tsne: Tsne, title: str = "") -> numpy.ndarray:
    """Coordinates float32 [N, 2] of features [N, D], L2-normalized: PCA start, fixed seed, one thread.

    Neighbors are then those of the cosine, by which kNN and the contrastive losses compare; a zero vector stays zero.
    With several threads sums would be taken in varying order and two runs would differ. A collapsed latent,
    all of whose directions are equal up to rounding, has no neighbors to keep: its points all lie at the origin.
    With a ``title`` progress is shown under it.
    """
    features = numpy.asarray(features, dtype=numpy.float32)
    lengths = numpy.linalg.norm(features, axis=1, keepdims=True)
    features = features / numpy.where(lengths > 0, lengths, 1)
    if numpy.ptp(features, axis=0).max() <= EQUAL * numpy.abs(features).max():
        return numpy.zeros((len(features), 2), dtype=numpy.float32)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    settings = {"perplexity": tsne.perplexity, "max_iter": tsne.iterations, "random_state": tsne.seed}
    progress = StepProgress(title, max(1, tsne.iterations // TOLD), silent=not title)
    with progress, threadpool_limits(1), redirect_stdout(_Said(progress, tsne.iterations)):
        embedded = TSNE(**settings, init="pca", learning_rate="auto", n_jobs=1, verbose=2).fit_transform(features)
    return embedded.astype(numpy.float32)


def kind_of(arrays: Mapping[str, numpy.ndarray]) -> str:
    """What a file of embeddings is of: without classes it has the training images too."""
    return "test images" if len(arrays["classes"]) else "images without labels"


def title(variant: str, latent: str, asked: int, count: int, perplexity: float, kind: str = "test images") -> str:
    """What a picture shows; fewer images than points asked for are stated."""
    images = f"{count} {kind}" if count >= asked else f"all {count} {kind} ({asked} asked for)"
    return f"{variant} - {latent}: t-SNE of {images}, L2-normalized, perplexity {perplexity:g}"
