"""Stratified splits: a share of every class, drawn by a seed of its own."""

import numpy
import torch

from lib.runtime.seeds import generator

VALIDATION_SHARE = 0.1
VALIDATION_SEED = 0  # fixed: another training seed must not move what choices are made on
TEST_SHARE = 0.2


def stratified(labels: numpy.ndarray, share: float, seed: int, purpose: str) -> numpy.ndarray:
    """Sorted int64 indices of ``share`` of every class, rounded half up, drawn without replacement.

    A class of two images or more gives at least one and keeps at least one; a class of one keeps it.
    Classes are drawn apart from each other: another class's size changes nothing.
    """
    chosen = []
    for label in numpy.unique(labels):
        members = numpy.flatnonzero(labels == label)
        count = min(max(1, int(len(members) * share + 0.5)), len(members) - 1)
        order = torch.randperm(len(members), generator=generator(seed, purpose, int(label))).numpy()
        chosen.append(members[order[:count]])
    return numpy.sort(numpy.concatenate(chosen)).astype(numpy.int64)


def validation_split(train_labels: numpy.ndarray) -> numpy.ndarray:
    """The fixed validation split of a training set: it depends on the labels and on nothing else."""
    return stratified(train_labels, VALIDATION_SHARE, VALIDATION_SEED, "validation split")
