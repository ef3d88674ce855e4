"""The commands embed and neighbors, by a variant with random weights: files, names, sheets, refusals."""

import os
import shutil
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from PIL import Image

from lib import embed_pictures
from lib.commands import neighbors as main
from lib.data.folders import read_folders
from lib.data.store import IMAGES_FILE, assemble, load_data, save_data
from lib.embed_pictures import embed
from lib.evaluate.embeddings import embed_data
from lib.evaluate.galleries import NEAR_DUPLICATE, unit_pixels
from lib.methods import build_method
from lib.methods.export import load_method, save_method
from lib.neighbors import MOST, duplicates, neighbors
from lib.runtime.files import read_arrays, write_arrays
from tests.examples import CPU, natural, pretraining, spelled_out
from tests.faults.refusals import refused
from tests.make_archives import encoded, two_level, write_folder, write_zip
from tests.project import write_lock

STORED = Path("data/embeddings/simclr.npz")


def pictures(count: int, size: int = 16, seed: int = 0) -> dict[str, bytes]:
    images = (255 * natural(count, size, seed)).byte().permute(0, 2, 3, 1).numpy()
    return {f"a {number:02}.png": encoded(Image.fromarray(image)) for number, image in enumerate(images)}


def embed_variant(data) -> None:
    """What the stage embed leaves of `write_variant`'s, and dvc.lock of it."""
    encoder = Path("data/encoders/simclr.safetensors")
    write_arrays(STORED, embed_data(load_method(encoder)[0], data, CPU))
    write_lock({"embed@simclr": ([str(encoder), str(IMAGES_FILE)], [str(STORED)])})


def write_variant(data, seed: int = 0) -> None:
    """What the stages before leave of a variant with random weights."""
    params = spelled_out(pretraining("simclr", seed=seed))
    torch.manual_seed(seed)
    method = build_method(params).eval()
    save_method(Path("data/encoders/simclr.safetensors"), method, params, data.about)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project's outputs: 20 pictures without labels, of which one is twice there, in another size and format."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        files = pictures(19)
        (twin,) = pictures(1, seed=5).values()
        larger = encoded(Image.open(write_folder(folder / "twin", {"x.png": twin}) / "x.png").resize((64, 64)), "BMP")
        write_folder(folder / "photos", {**files, "z twin.bmp": larger, "original.png": twin})
        data = assemble("images", read_folders("photos", 16))
        save_data(IMAGES_FILE, data)
        write_variant(data)
        embed_variant(data)
    return folder


@pytest.fixture(autouse=True)
def work(made, tmp_path, monkeypatch):
    monkeypatch.setenv("ENGRAM_THREADS", "1")
    monkeypatch.setenv("ENGRAM_DEVICE", "cpu")
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "work"))


def test_pictures_are_embedded_as_the_stage_embeds_them_whatever_their_folders():
    write_zip(Path("more.zip"), {f"any/deep/{path.name}": path.read_bytes() for path in Path("photos").iterdir()})
    assert "21 pictures by simclr, h of 512 numbers" in embed("photos", "simclr", Path("a.npz"))
    embed("more.zip", "simclr", Path("b.csv"))
    stored, arrays, frame = read_arrays(STORED), read_arrays(Path("a.npz")), pandas.read_csv("b.csv", index_col="file")
    assert list(arrays["latents"]) == ["h"] and list(arrays["projections"]) == ["z"]
    order = [stored["files"].tolist().index(name) for name in arrays["files"]]
    assert numpy.allclose(arrays["h"], stored["h"][order], atol=1e-5)
    assert list(frame)[:2] == ["h_0", "h_1"] and frame.shape == (21, 512)
    rows = frame.loc[[f"any/deep/{name}" for name in arrays["files"]]].astype("float32")
    assert numpy.array_equal(rows, arrays["h"])


def test_parquet_has_a_list_for_each_picture():
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    embed("photos/a 00.png", "simclr", Path("a.parquet"))
    embed("photos/a 00.png", "simclr", Path("a.npz"))
    (row,) = pandas.read_parquet("a.parquet").to_dict("records")
    assert row["file"] == "a 00.png" and numpy.array_equal(row["h"], read_arrays(Path("a.npz"))["h"][0])


def test_what_cannot_be_embedded_is_refused_and_nothing_is_written(monkeypatch, capsys):
    write_folder(Path("bad"), {"1.png": b"", "2.png": Path("photos/a 00.png").read_bytes()})
    os.mkfifo("pipe")  # which would be waited for
    monkeypatch.setattr(embed_pictures, "find_spec", lambda name: None)
    for given, variant, to, words in (
        ("photos", "simclr", "a.txt", "--to is a.txt; allowed: a file that ends in .csv, .npz, .parquet"),
        ("photos", "simclr", "a.parquet", "pip install pyarrow, or name a .csv"),
        ("photos", "none", "a.csv", "data/encoders/none.safetensors does not exist"),
        ("nowhere", "simclr", "a.csv", "nothing that can be read is at 'nowhere'"),
        ("data", "simclr", "a.csv", "data holds no images that can be read"),
        ("bad", "simclr", "a.csv", "1 of 2 images cannot be read: '1.png' ("),
        ("pipe", "simclr", "a.csv", "pipe is neither a file nor a folder"),
        ("photos", "simclr", "bad/1.png/a.csv", "cannot write to bad/1.png: "),
    ):
        refused(lambda: embed(given, variant, Path(to)), words)
        assert not Path(to).exists()
    refused(lambda: embed("bad", "simclr", Path("a.csv")), "or give --on-bad-image skip")
    assert "1 pictures" in embed("bad", "simclr", Path("a.csv"), "skip")
    assert pandas.read_csv("a.csv")["file"].tolist() == ["2.png"]


def test_a_picture_finds_itself_and_its_twin_on_a_sheet_of_names():
    lines = neighbors("photos/original.png", "simclr", Path("sheet.png"), 3)
    assert lines[0] == "original.png: nearest of 21 images by simclr, latent h"
    assert [line.split(maxsplit=1)[1] for line in lines[1:3]] == ["original.png", "z twin.bmp"]
    assert float(lines[1].split()[0]) == pytest.approx(1, abs=1e-4) and len(lines) == 5
    picture = numpy.asarray(Image.open("sheet.png").convert("RGB"))
    assert len(numpy.unique(picture.reshape(-1, 3), axis=0)) > 300, "pictures in true color"
    stored = read_arrays(STORED)
    units = stored["h"] / numpy.linalg.norm(stored["h"], axis=1, keepdims=True)
    slow = units @ units[stored["files"].tolist().index("original.png")]
    assert lines[3].split(maxsplit=1)[1] == stored["files"][slow.argsort()[-3]]


def test_labels_stand_beside_names_and_only_the_test_split_is_searched():
    data = assemble("images", read_folders(str(write_folder(Path("pets"), two_level())), 16))
    save_data(IMAGES_FILE, data)
    write_variant(data)
    embed_variant(data)
    lines = neighbors("pets/train/dog/0.png", "simclr", Path("sheet.png"), 10)
    assert "nearest of 4 images" in lines[0] and len(lines) == 6
    assert {tuple(line.split()[1:]) for line in lines[1:5]} == {
        (f"test/{label}/{number}.png", label) for label in ("cat", "dog") for number in (0, 1)
    }


def test_older_embeddings_and_other_images_are_refused():
    """By checksums, whatever the numbers are: an edit of one byte, another seed, other images, no dvc.lock."""
    encoder, words = Path("data/encoders/simclr.safetensors"), "dvc repro embed@simclr"
    for path, change in (
        (STORED, lambda: write_arrays(STORED, {**read_arrays(STORED), "more": numpy.zeros(1)})),
        (encoder, lambda: write_variant(load_data(IMAGES_FILE), seed=1)),
        (Path("dvc.lock"), Path("dvc.lock").unlink),
    ):
        kept = path.read_bytes()
        change()
        refused(lambda: neighbors("photos/a 00.png", "simclr", Path("a.png"), 3), words, str(STORED), "dvc.lock")
        path.write_bytes(kept)
    save_data(IMAGES_FILE, assemble("images", read_folders(str(write_folder(Path("pets"), two_level())), 16)))
    refused(lambda: neighbors("photos/a 00.png", "simclr", Path("a.png"), 3), "was trained on other images")
    assert not Path("a.png").exists()


def test_near_duplicates_against_a_slow_twin():
    images = (255 * natural(30, 16)).byte()
    images[20], images[25, :, :-1], images[28] = images[3], images[3, :, :-1], images[11]
    images[20, :, 0, :3] ^= 7  # nearer to the one after it than to the one before
    images[29] = images[20]
    found = duplicates(images)
    alike = unit_pixels(images) @ unit_pixels(images).T
    slow = {}
    for row in range(30):
        best = max(range(row), key=lambda other: alike[row, other], default=None)
        if best is not None and alike[row, best] > NEAR_DUPLICATE:
            slow[row] = best
    assert dict(zip(found["image"], found["other"])) == slow and {20: 3, 28: 11, 29: 20}.items() <= slow.items()
    assert found["correlation"].is_monotonic_decreasing and found["correlation"].iloc[0] == pytest.approx(1)


def test_the_command_tells_and_writes_near_duplicates(capsys):
    main(["--duplicates", "--to", "twins.csv"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 of 21 images are nearly the same as an earlier one")
    (row,) = pandas.read_csv("twins.csv").to_dict("records")
    assert {row["image"], row["other"]} == {"original.png", "z twin.bmp"} and row["image"] in said[1]


@pytest.mark.parametrize("given", [[], ["a.png"], ["--variant", "simclr"], ["a.png", "--variant", "x", "--duplicates"],
                                   ["a.png", "--variant", "x", "--count", "0"]])  # fmt: skip
def test_half_a_command_is_refused(given, capsys):
    with pytest.raises(SystemExit):
        main(given)
    assert "or --duplicates alone" in capsys.readouterr().err


def test_the_help_names_what_is_allowed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"a folder of at most {MOST}\n" in capsys.readouterr().out
