"""scikit-learn's t-SNE on all threads: what one thread, and with it repeatability, costs us."""

from typing import Any

from sklearn.manifold import TSNE

from bench.images import latents
from bench.timing import once
from lib.params.evaluation import Tsne
from lib.runtime.machine import Machine


def tsne(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    features = latents(settings["points"], settings["width"])
    rule = {
        "perplexity": Tsne().perplexity,
        "init": "pca",
        "learning_rate": "auto",
        "random_state": 0,
        "n_jobs": machine.threads,
    }
    TSNE(max_iter=250, **rule).fit_transform(features[:100])  # warms up as ours does
    return once(lambda: TSNE(max_iter=settings["iterations"], **rule).fit_transform(features))
