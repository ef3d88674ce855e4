"""Latents of images as arrays: what the stages after ``embed`` read instead of images and networks."""

from typing import Any

import numpy
import torch
from torch import Tensor

from lib.data.store import ImageData
from lib.evaluate.features import extract_with_projections
from lib.methods.base import Method
from lib.runtime.machine import Machine

Arrays = dict[str, numpy.ndarray]


def embed_images(method: Method, images: Tensor, files: list[str], about: dict[str, Any], machine: Machine) -> Arrays:
    """Arrays by name: every latent and projection of images uint8 [M, 3, S, S], float32 [M, D]; ``files`` names them.

    ``latents`` and ``projections`` name the arrays that are one or the other. ``about``: the record of the data that
    the method was trained on, with whose mean and deviation images are normalized.
    """
    mean, std = torch.tensor(about["mean"]), torch.tensor(about["std"])
    found = extract_with_projections(method, images, mean, std, machine, title="latents")
    arrays = {name: values.numpy() for tensors in found.values() for name, values in tensors.items()}
    names = {kind: numpy.array(list(tensors), str) for kind, tensors in found.items()}
    return {**arrays, "files": numpy.array(files), **names}


def embed_data(method: Method, data: ImageData, machine: Machine) -> Arrays:
    """`embed_images` of `ImageData.shown`, with ``labels`` and ``indices`` (rows of these images), int64 [M], and the
    names of the ``classes``; without classes the labels are -1."""
    images, labels, files = data.shown()
    beside = {"labels": labels.numpy(), "indices": numpy.arange(len(labels)), "classes": numpy.array(data.classes, str)}
    return {**embed_images(method, images, files, data.about, machine), **beside}
