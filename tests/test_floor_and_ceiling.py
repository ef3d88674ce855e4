"""The untrained and the supervised encoder (docs/methods.md, 6)."""

import math
from dataclasses import replace

import pytest
import torch

from lib.methods.supervised import cross_entropy
from tests.examples import built, embedded, images, normal, trainer


@pytest.mark.parametrize(
    ("logits", "value"),
    [(torch.zeros(5, 10), 2.302585), (60 * torch.eye(5, 10), 0.0), (torch.eye(5, 10), math.log(9 + math.e) - 1)],
)
def test_cross_entropy_at_its_corners(logits, value):
    assert cross_entropy(logits, torch.arange(5)).item() == pytest.approx(value, abs=1e-6)


def test_cross_entropy_equals_its_formula():
    logits, labels = normal(6, 4), [0, 3, 1, 1, 2, 0]
    errors = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits.tolist(), labels)]
    assert cross_entropy(logits, torch.tensor(labels)).item() == pytest.approx(sum(errors) / 6, rel=1e-5)


def test_there_are_as_many_logits_as_the_data_has_classes():
    embeddings = embedded(built("supervised"))
    assert embeddings["y_a"].shape == (8, 2) and set(embeddings) == {"y_a", "labels"}


def test_an_untrained_encoder_is_the_one_that_training_starts_from():
    untrained, trained = built("simclr", epochs=0), built("simclr", epochs=100)
    torch.testing.assert_close(untrained.state_dict(), trained.state_dict(), rtol=0, atol=0)


def gradient(variant: str, data) -> list[torch.Tensor]:
    """Of the first step, and how many images are trained on."""
    run = trainer(variant, data=data)
    run.forward_backward(0, 0, run.order(0)[0])
    return [torch.tensor(len(run.images)), *(weight.grad for weight in run.method.parameters())]


@pytest.mark.parametrize(("variant", "count", "reads"), [("supervised", 56, "fitting"), ("simclr", 64, "")])
def test_supervised_alone_reads_labels_and_not_those_of_validation_images(variant, count, reads):
    data = images()
    expected = gradient(variant, data)
    assert expected[0] == count
    for part in ("fitting", "validation"):
        labels = data.train_labels.clone()
        labels[getattr(data, part)] = 1 - labels[getattr(data, part)]
        found = gradient(variant, replace(data, train_labels=labels))
        assert all(torch.equal(a, b) for a, b in zip(expected, found)) == (part != reads)
