"""The test split as arrays: what the stages after ``embed`` read instead of images and networks."""

import numpy

from lib.data.store import ImageData
from lib.evaluate.features import extract_with_projections
from lib.methods.base import Method
from lib.runtime.machine import Machine


def embed_test(method: Method, data: ImageData, machine: Machine) -> dict[str, numpy.ndarray]:
    """Arrays by name: every latent and projection, float32 [M, D], in the order of the test split.

    ``labels`` and ``indices`` (the row in the split) are int64 [M]; ``classes`` are names; ``latents`` and
    ``projections`` name the arrays that are one or the other.
    """
    found = extract_with_projections(method, data.test_images, data.mean, data.std, machine, title="latents")
    arrays = {name: values.numpy() for tensors in found.values() for name, values in tensors.items()}
    return {
        **arrays,
        "labels": data.test_labels.numpy(),
        "indices": numpy.arange(len(data.test_labels)),
        "classes": numpy.array(data.classes),
        **{kind: numpy.array(list(tensors)) for kind, tensors in found.items()},
    }
