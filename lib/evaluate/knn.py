"""Weighted nearest neighbors in cosine similarity (Wu et al. 2018, section 3.4)."""

import torch
from torch import Tensor
from torch.nn import functional

from lib.runtime.chunks import chunks
from lib.runtime.seeds import generator

CHUNK = 2**26  # elements, 256 MiB: products of more rows are faster


def knn_scores(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Class scores of queries [N, D], the sum of exp(s / temperature) over the neighbors of that class: [N, classes].

    The neighbors are the ``k`` vectors of bank [M, D], with labels [M], of highest cosine similarity s; which of equals
    are among them is drawn once. Each query's scores are divided by its largest exp(s / temperature), which keeps them
    finite and changes no order.
    """
    # topk takes the first of equals. Binary codes have many, and a bank sorted by class would vote for the first class.
    order = torch.randperm(len(bank), generator=generator(0, "order of neighbors")).to(bank.device)
    bank, bank_labels = functional.normalize(bank[order].float(), dim=1), bank_labels[order]
    queries = functional.normalize(queries.float(), dim=1)
    scores = queries.new_zeros(len(queries), classes)
    parts = list(chunks(len(queries), len(bank), CHUNK))
    rows = max((part.stop - part.start for part in parts), default=0)
    products = queries.new_empty(rows, len(bank))  # one for all: new memory of this size costs time
    for part in parts:
        product = torch.mm(queries[part], bank.T, out=products[: part.stop - part.start])
        similarity, index = product.topk(k, dim=1)  # [n, k]
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        scores[part].scatter_add_(1, bank_labels[index], weights)
    return scores
