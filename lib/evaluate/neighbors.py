"""Which points of a latent lie next to which."""

import numpy


def nearest(features: numpy.ndarray, k: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Rows of the ``k`` others of highest cosine similarity to each of features [N, D], nearest first: int64 [N, k].

    Beside them 1 - cosine [N, k]. Where there are fewer others, all of them. A zero vector is at 1 from all others.
    """
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums in one order, so that two runs agree on ties
        found = NearestNeighbors(n_neighbors=min(k, len(features) - 1), metric="cosine", n_jobs=1).fit(features)
        distances, rows = found.kneighbors()
    return rows, distances
