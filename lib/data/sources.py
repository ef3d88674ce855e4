"""The reader that ``dataset`` in params.yaml names."""

import numpy

from lib.data import official
from lib.data.folders import read_folders
from lib.data.pixels import square_all
from lib.data.split import TEST_SHARE, stratified
from lib.data.store import ImageData, RawDataset, assemble
from lib.params.pretraining import Dataset

DIGITS_SEED = 0  # fixed: the digits have one test set, whatever the training seed


def read_source(params: Dataset) -> ImageData:
    """Images, labels, splits and provenance of the chosen dataset.

    Raises:
        UserError: they cannot be had, or are not as they should be.
    """
    size = params.image_size
    readers = {
        "cifar10": lambda: official.read_cifar(official.cifar10_editions(), size),
        "cifar100": lambda: official.read_cifar(official.cifar100_editions(), size),
        "mnist": lambda: official.read_mnist(official.mnist_files(), size),
        "digits": lambda: read_digits(size),
        "images": lambda: read_folders(params.images_path, size, params.seed, params.on_bad_image),
    }
    return assemble(params.dataset, readers[params.dataset]())


def read_digits(size: int) -> RawDataset:
    """scikit-learn's 1,797 scanned digits: 8x8, 0..16, made RGB 0..255 and resized bilinearly."""
    from importlib.metadata import version

    from PIL.Image import Resampling
    from sklearn.datasets import load_digits

    found = load_digits()
    gray = numpy.round(found.images * 255 / 16).astype(numpy.uint8)
    images = square_all(gray, size, Resampling.BILINEAR)
    labels = found.target.astype(numpy.int64)
    test = stratified(labels, TEST_SHARE, DIGITS_SEED, "test split")
    train = numpy.delete(numpy.arange(len(labels)), test)
    return RawDataset(
        images[train],
        labels[train],
        images[test],
        labels[test],
        classes=[str(name) for name in found.target_names],
        source=f"scikit-learn {version('scikit-learn')} load_digits",
        provenance={"resized": "from 8x8, bilinear", "test_split": f"{TEST_SHARE:.0%} of every class, fixed"},
    )
