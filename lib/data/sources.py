"""The reader that ``dataset`` in params.yaml names."""

from importlib.metadata import version

import numpy
from PIL.Image import Resampling

from lib.data.folders import read_folders
from lib.data.pixels import square_all
from lib.data.split import TEST_SHARE, stratified
from lib.data.store import ImageData, RawDataset, assemble
from lib.params.pretraining import Dataset


def read_source(params: Dataset) -> ImageData:
    """Images, labels, splits and provenance of the chosen dataset; a UserError says why they cannot be had."""
    if params.dataset == "images":
        raw = read_folders(params.images_path, params.image_size, params.on_bad_image)
    elif params.dataset == "digits":
        raw = read_digits(params.image_size)
    else:
        from lib.data.official import read_official  # torchvision takes a second to import

        raw = read_official(params.dataset, params.image_size)
    return assemble(params.dataset, raw)


def read_digits(size: int) -> RawDataset:
    """scikit-learn's 1,797 scanned digits: 8x8, 0..16, made RGB 0..255 and resized bilinearly."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = numpy.round(digits.images * 255 / 16).astype(numpy.uint8)
    images, labels = square_all(gray, size, Resampling.BILINEAR), digits.target.astype(numpy.int64)
    test = stratified(labels, TEST_SHARE, "test split")
    train = numpy.delete(numpy.arange(len(labels)), test)
    classes, source = [str(name) for name in digits.target_names], f"scikit-learn {version('scikit-learn')} load_digits"
    provenance = {"resized": "from 8x8, bilinear", "test_split": f"{TEST_SHARE:.0%} of every class, fixed"}
    return RawDataset(images[train], labels[train], images[test], labels[test], classes, source, provenance)
