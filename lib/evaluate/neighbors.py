"""Which points of a latent lie next to which."""

import numpy


def nearest(features: numpy.ndarray, k: int) -> numpy.ndarray:
    """Rows of the ``k`` others of highest cosine similarity to each of features [N, D], nearest first: int64 [N, k].

    Where there are fewer than k others, all of them. A zero vector is as far from all others.
    """
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums in one order, so that two runs agree on ties
        found = NearestNeighbors(n_neighbors=min(k, len(features) - 1), metric="cosine", n_jobs=1).fit(features)
        return found.kneighbors(return_distance=False)
