"""The random and the supervised encoder (docs/methods.md, 6): no training, and training with labels."""

import dataclasses

import pandas
import pytest
import torch
from lib.losses.cross_entropy import cross_entropy

from lib.core.checkpoint import CheckpointStore
from lib.core.loop import pretrain
from lib.core.trainer import Pretrainer
from lib.methods import build_method
from lib.methods.export import load_method, save_method
from lib.runtime.errors import UserError
from tests.examples import CPU, images, pretraining


def trained(variant: str, data, folder, **changes) -> tuple[Pretrainer, pandas.DataFrame]:
    params = pretraining(variant, **changes)
    torch.manual_seed(0)
    trainer = Pretrainer(build_method(params), data, params, CPU)
    with (store := CheckpointStore(variant, "key", folder)).held():
        pretrain(trainer, store, folder / "curve.csv", lambda method: 12.5)
    return trainer, pandas.read_csv(folder / "curve.csv")


def with_labels(data, labels: torch.Tensor):
    return dataclasses.replace(data, train_labels=labels)


def test_a_random_encoder_stays_as_it_was_drawn_and_has_one_row(tmp_path):
    torch.manual_seed(0)
    before = build_method(pretraining("random")).state_dict()
    trainer, curve = trained("random", images(), tmp_path)
    assert all(torch.equal(rows, trainer.method.state_dict()[name]) for name, rows in before.items())
    assert curve[["epoch", "knn"]].to_dict("records") == [{"epoch": 0, "knn": 12.5}]
    again, same = trained("random", images(), tmp_path)
    assert curve.equals(same)


def test_supervised_trains_on_labels_without_the_validation_images(tmp_path):
    data = images()
    moved = data.train_labels.clone()
    moved[data.validation] = 1 - moved[data.validation]
    trainer, curve = trained("supervised", data, tmp_path / "a")
    assert len(trainer.images) == len(data.fitting)
    assert list(curve["epoch"]) == [1, 2] and curve["loss"].notna().all()
    others, same = trained("supervised", with_labels(data, moved), tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(trainer.method.parameters(), others.method.parameters()))
    other = data.train_labels.roll(1)
    assert curve["loss"].tolist() != trained("supervised", with_labels(data, other), tmp_path / "c")[1]["loss"].tolist()


def test_no_other_method_sees_labels(tmp_path):
    data = images()
    _, curve = trained("simclr", data, tmp_path / "a")
    _, same = trained("simclr", with_labels(data, torch.zeros_like(data.train_labels)), tmp_path / "b")
    assert curve["loss"].tolist() == same["loss"].tolist()


def test_too_few_classes_are_refused_by_name():
    params = dataclasses.replace(pretraining("supervised"), options={"classes": 2})
    with pytest.raises(
        UserError,
        match=r"variants.supervised.classes is 2; allowed: 0 \(those of the data\), or at "
        "least the number of classes of the data, 3",
    ):
        Pretrainer(build_method(params), images(classes=3), params, CPU)


def test_one_class_is_none():
    with pytest.raises(UserError, match="variants.supervised.classes is 1; allowed: 0 .* or at least 2"):
        build_method(dataclasses.replace(pretraining("supervised"), options={"classes": 1}))


@pytest.mark.parametrize(("given", "scores"), [(0, 3), (5, 5)])
def test_there_are_as_many_scores_as_the_data_has_classes_unless_more_are_asked_for(given, scores, tmp_path):
    params = dataclasses.replace(pretraining("supervised"), options={"classes": given})
    trainer = Pretrainer(build_method(params), images(classes=3), params, CPU)
    assert trainer.method.classifier.weight.shape == (scores, trainer.method.encoder.width)
    assert any(
        weight is trainer.method.classifier.weight
        for group in trainer.optimizer.param_groups
        for weight in group["params"]
    )
    save_method(tmp_path / "m.safetensors", trainer.method, params, {"checksum": "c"})
    before = torch.get_rng_state()
    loaded, _ = load_method(tmp_path / "m.safetensors")
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(loaded.classifier.weight, trainer.method.classifier.weight)


def test_cross_entropy_starts_at_the_logarithm_of_the_classes():
    assert cross_entropy(torch.zeros(5, 10), torch.arange(5)).item() == pytest.approx(2.302585, abs=1e-6)
