"""Sparse binary codes without labels (docs/methods.md, 12): the two views of an image should have similar codes.

After EmbedderSDR, whose triplets are of classes (`lib.methods.kwta_supervised`): here the positive is the other
view, and every other image of the batch is a negative.
"""

import torch
from torch import Tensor

from lib.methods.base import Named
from lib.methods.parts.kwta import SparseCode


class KWTA(SparseCode):
    """Groups are images, of which two views each are seen."""

    def grouped(self, embeddings: Named) -> tuple[Tensor, Tensor]:
        first, second = embeddings["training_code_a"], embeddings["training_code_b"]
        return torch.cat([first, second]), torch.arange(len(first), device=first.device).repeat(2)


METHOD = KWTA
