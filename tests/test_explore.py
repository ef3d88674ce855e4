"""What `python -m lib explore` writes, read back."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy
import pytest
from PIL import Image

from lib.commands import explore as explore_command
from lib.data.store import RawDataset, assemble, save_data
from lib.evaluate.neighbors import nearest
from lib.explore import explore
from lib.runtime.errors import UserError
from lib.runtime.files import read_arrays, write_arrays
from tests.faults.refusals import refused
from tests.project import write_lock
from tests.report_runs import CLASSES, TEST_IMAGES, write_run

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow of requirements-test.txt is not installed")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    write_run(folder, "dual", latents=("upper", "lower"))
    draw = numpy.random.default_rng(0)
    latents = {name: draw.normal(size=(TEST_IMAGES, 6)).astype(numpy.float32) for name in ("upper", "lower")}
    write_arrays(folder / "data/embeddings/dual.npz", latents)
    images = draw.integers(0, 256, (TEST_IMAGES, 3, 16, 16), dtype=numpy.uint8)
    labels = numpy.arange(TEST_IMAGES) % 10
    raw = RawDataset(images.copy(), labels.copy(), images, labels, CLASSES, "a test")
    save_data(folder / "data/images.safetensors", assemble("made up", raw))
    return folder


@pytest.mark.parametrize(("asked", "latent"), [(None, "upper"), ("lower", "lower")])
def test_a_latents_points_come_back_from_parquet_and_from_the_projectors_files(root, tmp_path, asked, latent):
    count = explore("dual", asked, tmp_path, root)
    shown = read_arrays(root / "data/tsne/dual.npz")
    features = read_arrays(root / "data/embeddings/dual.npz")[latent][shown["indices"]]
    table = parquet.read_table(tmp_path / "points.parquet")
    assert table.num_rows == count == len(shown["labels"])
    points = table.to_pydict()
    assert numpy.allclose(numpy.stack([points["x"], points["y"]], 1), shown[latent])
    assert points["class"] == [CLASSES[label] for label in shown["labels"]] and set(points["latent"]) == {latent}
    near, distances = nearest(features, 10)
    assert points["neighbors"][3]["ids"] == near[3].tolist()
    assert numpy.allclose(points["neighbors"][3]["distances"], distances[3])
    # pictures as Hugging Face's Image has them, and the same ones in the sprite, row by row
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["picture"] == {"_type": "Image"}
    pictures = [numpy.asarray(Image.open(io.BytesIO(picture["bytes"]))) for picture in points["picture"]]
    sprite = numpy.asarray(Image.open(tmp_path / "sprite.png"))
    config = (tmp_path / "projector_config.pbtxt").read_text()
    tile = int(re.search(r"single_image_dim: (\d+)", config)[1])
    across = sprite.shape[1] // tile
    assert sprite.shape[0] == sprite.shape[1], "the projector would show wrong pictures"
    for number in (0, 17, count - 1):
        top, left = tile * (number // across), tile * (number % across)
        assert numpy.array_equal(sprite[top : top + tile, left : left + tile], pictures[number])
    assert numpy.allclose(numpy.loadtxt(tmp_path / "vectors.tsv", delimiter="\t"), features, rtol=1e-4)
    lines = (tmp_path / "metadata.tsv").read_text().splitlines()
    assert lines[0] == "class\timage" and lines[4] == f"{points['class'][3]}\t{shown['indices'][3]}"
    assert len(lines) == count + 1
    assert {"vectors.tsv", "metadata.tsv", "sprite.png"} <= set(re.findall(r'"(.*?)"', config))


def test_points_whose_files_are_of_two_runs_are_refused(root, tmp_path, monkeypatch, capsys):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    images, embedded, plane = "data/images.safetensors", "data/embeddings/dual.npz", "data/tsne/dual.npz"
    write_lock({"embed@dual": ([images], [embedded]), "tsne@dual": ([embedded], [plane])})
    explore_command(["dual"])
    assert "points written to explore/dual" in capsys.readouterr().out
    for changed, written, read in ((plane, plane, embedded), (images, embedded, images)):
        whole = Path(changed).read_bytes()
        Path(changed).write_bytes(whole + b" ")
        words = f"{written} was not written from {read}, by the checksums in dvc.lock; dvc repro"
        refused(lambda: explore_command(["dual"]), words)
        Path(changed).write_bytes(whole)


def test_a_latent_that_is_not_there_is_refused_by_name(root, tmp_path):
    with pytest.raises(UserError, match="dual has no 2-D embedding of z; latents: upper, lower"):
        explore("dual", "z", tmp_path / "new", root)
    assert not (tmp_path / "new").exists()
