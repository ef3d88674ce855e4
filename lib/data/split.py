"""Stratified splits: a share of every class, drawn by a seed of their own, whatever the seed of the training."""

import numpy
import torch

from lib.runtime.seeds import generator

VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2
SEED = 0  # fixed: another training seed must not move what choices are made on, nor what is reported


def stratified(labels: numpy.ndarray, share: float, purpose: str) -> numpy.ndarray:
    """Sorted int64 indices of ``share`` of every class, rounded half up, drawn without replacement.

    A class of two images or more gives at least one and keeps at least one; a class of one keeps it.
    Classes are drawn apart from each other: another class's size changes nothing.
    """
    chosen = []
    for label in numpy.unique(labels):
        members = numpy.flatnonzero(labels == label)
        count = min(max(1, int(len(members) * share + 0.5)), len(members) - 1)
        order = torch.randperm(len(members), generator=generator(SEED, purpose, int(label))).numpy()
        chosen.append(members[order[:count]])
    return numpy.sort(numpy.concatenate(chosen)).astype(numpy.int64)
