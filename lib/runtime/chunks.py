"""Work on a large matrix, such as that of all pairs of embeddings, some rows at a time: it never exists whole."""

from collections.abc import Iterator

ELEMENTS = 2**23  # at a time; 32 MiB in fp32


def chunks(rows: int, columns: int, elements: int | None = None) -> Iterator[slice]:
    """Consecutive slices of ``rows``, each so long that it times ``columns`` is at most ``elements``.

    A slice has at least one row; ``elements`` is `ELEMENTS` if not given.
    """
    size = max(1, (ELEMENTS if elements is None else elements) // columns)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
