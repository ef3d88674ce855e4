"""Every variant of the preset `all`, and every form, from images to its rows in the table; data of other layouts."""

import os
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from lib.params.check import check_params

from lib.data import official
from lib.data.store import IMAGES_FILE, load_data, save_data
from lib.runtime.files import read_arrays, read_json
from stages import download, embed, linear, overview, pretrain, results, tsne
from tests.examples import FORMS, images, params_file
from tests.faults.runs import narrow
from tests.make_archives import cifar_records, idx, sha256, write_tar

SMALL = {
    "epochs": 1,
    "linear__epochs": 1,
    "linear__study_epochs": 1,
    "knn__k": 5,
    "tsne__points": 12,
    "tsne__perplexity": 3.0,
    "tsne__iterations": 250,
}
MEASURED = (pretrain, linear, embed, tsne)
SENSITIVE = ("simclr", "supervised", "cmc")  # to nothing, to the number of classes, to colors


def small(**changes) -> dict:
    """params.yaml with every variant and every form of one, narrow and short."""
    raw = params_file(**SMALL, **changes)
    for form, (variant, options) in FORMS.items():
        raw["variants"][form] = {**raw["variants"][variant], **options}
    return narrow(raw)


def alone(raw: dict, variant: str) -> dict:
    return {**raw, "variants": {variant: raw["variants"][variant]}, "transfer": {**raw["transfer"], "variants": []}}


VARIANTS = tuple(small()["variants"])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder to work in, whose images are random."""
    before, threads = {**os.environ}, torch.get_num_threads()
    for name in [name for name in os.environ if name.startswith("ENGRAM_") or name == "DVC_ROOT"]:
        del os.environ[name]
    os.environ |= {"ENGRAM_DEVICE": "cpu", "ENGRAM_THREADS": "1", "ENGRAM_PRECISION": "fp32"}
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    folder, here = tmp_path_factory.mktemp("project"), Path.cwd()
    try:
        os.chdir(folder)
        save_data(IMAGES_FILE, images(64))
        yield folder
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_trained_measured_embedded_and_drawn(project, variant):
    raw = alone(small(), variant)
    check_params(raw)
    for stage in MEASURED:
        stage.main(raw, variant)
    found, scores = read_json(Path(f"metrics/{variant}.json")), read_json(Path(f"data/scores/{variant}.json"))
    for name, latent in scores["latents"].items():
        assert 0 <= latent["top1"] <= latent["top5"] <= 100 and 0 <= latent["knn"] <= 100
        assert (found if len(scores["latents"]) == 1 else found[name])["top1"] == latent["top1"]
    arrays = read_arrays(Path(f"data/embeddings/{variant}.npz"))
    embedded = arrays["latents"].tolist()
    assert list(scores["latents"])[: len(embedded)] == embedded, "combinations of latents follow them"
    assert {path.stem for path in Path(f"plots/tsne/{variant}").glob("*.png")} == set(embedded)


def test_the_table_has_rows_for_all_of_them(project):
    raw = small()
    absent = [name for name in VARIANTS if not Path(f"metrics/{name}.json").exists()]
    if absent:
        pytest.skip(f"those were not measured: {', '.join(absent)}")
    overview.main(raw)
    results.main(raw)
    lines = Path("metrics/results.md").read_text().splitlines()
    for variant in VARIANTS:
        names = list(read_json(Path(f"data/scores/{variant}.json"))["latents"])
        for name in [variant] if len(names) == 1 else [f"{variant} · {each}" for each in names]:
            assert any(line.startswith(f"| {name} |") for line in lines), name
    assert Path("plots/tsne/overview.png").stat().st_size > 0


def cifar100(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official layout: 100 classes of four training images and two test images each."""
    published, _ = official.cifar100_editions()
    names = "\n".join(f"class_{number}" for number in range(100)).encode()
    files = {
        "fine_label_names.txt": names,
        "coarse_label_names.txt": b"x\ny\n",
        "train.bin": cifar_records([(0, number % 100) for number in range(400)], 0),
        "test.bin": cifar_records([(0, number % 100) for number in range(200)], 400),
    }
    path = write_tar(
        folder / published.archive.name, {f"cifar-100-binary/{name}": content for name, content in files.items()}
    )
    edition = replace(published, archive=replace(published.archive, checksum=sha256(path.read_bytes())))
    monkeypatch.setattr(official, "cifar100_editions", lambda: [edition])
    monkeypatch.setenv("ENGRAM_ARCHIVE", str(path))


def mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official layout: ten classes of twenty training images and five test images each."""
    stream, arrays = numpy.random.default_rng(0), {}
    for split, count in (("train", 200), ("test", 50)):
        arrays[f"{split}_images"] = stream.integers(0, 256, (count, 28, 28))
        arrays[f"{split}_labels"] = numpy.arange(count) % 10
    files = {}
    for part, file in official.mnist_files().items():
        content = idx(arrays[part])
        (folder / file.name).write_bytes(content)
        files[part] = replace(file, checksum=sha256(content))
    monkeypatch.setattr(official, "mnist_files", lambda: files)
    monkeypatch.setenv("ENGRAM_ARCHIVE", str(folder))


@pytest.mark.parametrize("variant", SENSITIVE)
@pytest.mark.parametrize(("layout", "classes"), [(cifar100, 100), (mnist, 10)])
def test_other_data_goes_through_the_same_stages(project, tmp_path, monkeypatch, layout, classes, variant):
    monkeypatch.chdir(tmp_path)
    layout(tmp_path, monkeypatch)
    raw = alone(small(dataset=layout.__name__, image_size=32, batch_size=32), variant)
    check_params(raw)
    download.main(raw)
    assert len(load_data(IMAGES_FILE).classes) == classes
    for stage in MEASURED:
        stage.main(raw, variant)
    results.main(raw)
    assert f"| {variant}" in Path("metrics/results.md").read_text()
    assert len(read_json(Path(f"data/scores/{variant}.json"))["classes"]) == classes
