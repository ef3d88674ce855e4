"""Sparse binary codes with labels, after EmbedderSDR (docs/methods.md, 12): codes of a class are similar.

Not self-supervised. It trains without the validation images.
"""

from torch import Tensor

from lib.methods.base import Named
from lib.methods.parts.kwta import SparseCode


class SupervisedKWTA(SparseCode):
    """Groups are classes; each image is seen once."""

    views = 1
    needs = ("labels",)

    def grouped(self, embeddings: Named) -> tuple[Tensor, Tensor]:
        return embeddings["training_code_a"], embeddings["labels"]


METHOD = SupervisedKWTA
