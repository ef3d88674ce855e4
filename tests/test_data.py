"""The data file, the splits, the digits."""

from pathlib import Path

import numpy
import pytest
import torch
from sklearn.datasets import load_digits

from lib.data.sources import read_digits, read_source
from lib.data.split import stratified
from lib.data.store import TENSORS, RawDataset, assemble, content_checksum, load_data, pixel_statistics, save_data
from lib.params.pretraining import Dataset
from lib.runtime.files import write_tensors
from tests.faults.refusals import refused
from tests.make_archives import picture, two_level, write_zip


def test_stratified_counts_and_tiny_classes():
    labels = numpy.repeat([0, 1, 2, 3, 4, 5], [1, 2, 3, 14, 15, 500])
    chosen = stratified(labels, 0.1, "test")
    assert numpy.bincount(labels[chosen], minlength=6).tolist() == [0, 1, 1, 1, 2, 50]
    assert chosen.tolist() == sorted(set(chosen.tolist())) and chosen.dtype == numpy.int64
    assert not numpy.array_equal(chosen, stratified(labels, 0.1, "another"))
    longer = numpy.concatenate([labels, [0] * 40])
    assert set(chosen[labels[chosen] == 5]) == {
        index for index in stratified(longer, 0.1, "test") if longer[index] == 5
    }


def test_the_validation_split_depends_on_the_labels_alone():
    """The five indices are those of every record in docs/results: another draw would move what choices are made on."""
    labels = numpy.arange(1000) % 10
    images = numpy.zeros((1000, 3, 8, 8), numpy.uint8)
    for seed in (1, 2):
        state = torch.manual_seed(seed).get_state()
        raw = RawDataset(images, labels, images[:10], labels[:10], [str(label) for label in range(10)], "x")
        found = assemble("images", raw).validation
        assert torch.equal(state, torch.get_rng_state())
        assert len(found) == 100 and found[:5].tolist() == [0, 2, 12, 17, 24]


def test_statistics_equal_the_slow_form():
    images = numpy.stack([picture(number, 8, 8).transpose(2, 0, 1) for number in range(9)])
    images[:, 2] = 51
    mean, std = pixel_statistics(images)
    slow = images.astype(numpy.float64) / 255
    assert mean == pytest.approx(slow.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std[:2] == pytest.approx(slow.std((0, 2, 3))[:2].tolist(), abs=1e-12)
    assert mean[2] == pytest.approx(0.2) and std[2] == 1.0


def test_round_trip_and_damage(tmp_path):
    data = assemble("digits", read_digits(8))
    path = tmp_path / "images.safetensors"
    save_data(path, data)
    found = load_data(path)
    assert all(torch.equal(getattr(found, name), getattr(data, name)) for name in TENSORS)
    assert found.about == data.about and found.files[:: len(data.train_labels)] == ["train/00000", "test/00000"]
    changed = {name: getattr(data, name).clone() for name in TENSORS}
    assert content_checksum(changed) == data.about["checksum"]
    changed["test_labels"][0] += 1
    assert content_checksum(changed) != data.about["checksum"]
    assert found.mean.dtype == torch.float32 and found.std.shape == (3,)
    both = torch.cat([found.fitting, found.validation]).sort().values
    assert torch.equal(both, torch.arange(len(found.train_labels)))
    refused(lambda: load_data(tmp_path / "none.safetensors"), "has not run")
    for damaged in (path.read_bytes()[:-10], b"no"):
        path.write_bytes(damaged)
        refused(lambda: load_data(path), "not a whole file")
    whole = {name: getattr(data, name) for name in TENSORS}
    for tensors, about in (({"train_images": data.train_images}, data.about), (whole, {})):
        write_tensors(path, tensors, about)
        refused(lambda: load_data(path), "not a data file of this version; delete it and run dvc repro")


def test_digits_are_gray_squares_with_a_fixed_test_split():
    raw, source = read_digits(8), load_digits()
    about = assemble("digits", raw).about
    assert about["counts"]["train"] == 1438 and about["counts"]["test"] == 359
    every = numpy.bincount(source.target)
    assert numpy.bincount(raw.test_labels).tolist() == [int(count * 0.2 + 0.5) for count in every]
    assert read_source(Dataset(dataset="digits", image_size=8)).about == about
    both = numpy.concatenate([raw.train_images, raw.test_images])
    assert (both[:, 0] == both[:, 2]).all() and read_digits(16).train_images.shape == (1438, 3, 16, 16)
    pixels = numpy.round(source.data * 255 / 16).astype(numpy.uint8)
    assert sorted(map(bytes, both[:, 0].reshape(-1, 64))) == sorted(map(bytes, pixels))


def test_the_same_pictures_give_the_same_bytes(tmp_path):
    write_zip(tmp_path / "pets.zip", {**two_level(train=20), "notes.txt": b"x"})
    params = Dataset(dataset="images", images_path=str(tmp_path / "pets.zip"), image_size=16)
    for number in (0, 1):
        save_data(tmp_path / f"{number}.safetensors", read_source(params))
    written = [Path(tmp_path / f"{number}.safetensors").read_bytes() for number in (0, 1)]
    assert written[0] == written[1] and str(tmp_path).encode() not in written[0]
    about = load_data(tmp_path / "0.safetensors").about
    assert about["counts"]["validation"] == 4 and about["ignored"] == {".txt": 1}
