"""The memory card: the stages' own numbers for any encoder, what names one, and refusals of one line."""

import json
import re
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from lib.commands import card as main
from lib.evaluate.linear import evaluate
from lib.evaluate.memory import measure_memory, pixel_landmark
from lib.params.evaluation import Knn, Linear, Memory
from lib.params.pretraining import Augment
from lib.runtime.files import read_json
from lib.takeaway import card as card_module
from lib.takeaway.card import Adapter, card, card_of_pictures, measure
from lib.takeaway.encoders import Encoder
from lib.takeaway.page import page, write_card
from lib.views.augment import normalize
from tests.examples import CPU, ROOT, tiny_about, tiny_data, tiny_method
from tests.faults.refusals import refused
from tests.make_archives import encoded, write_folder
from tests.test_card_encoders import MODULE, SMALL


def flat(images):
    """An encoder: means of 2x2 pixels."""
    return torch.nn.functional.avg_pool2d(images, 2).flatten(1)


def arrays(count: int = 120, labeled: bool = True):
    data = tiny_data(count, 3)
    return data.train_images, data.train_labels if labeled else None


@pytest.fixture(scope="module")
def measured():
    return card(flat, *arrays(), classes=["a", "b", "c"], machine=CPU)


def test_the_numbers_are_those_of_the_stages():
    data, method = tiny_data(), tiny_method()

    def encode(images):
        return method.latents(images)["h"]

    found = measure(Encoder(encode, mean=data.mean.tolist(), std=data.std.tolist()), data, CPU)
    theirs = measure_memory(method, tiny_about(), data, Augment(), Memory(), CPU).record
    assert found["memory"] == theirs["latents"]["h"] and found["possible"] == theirs["possible"]
    scores = evaluate(method, tiny_about(), data, Linear(study_epochs=0), Knn(k=2), CPU).record["latents"]["h"]
    assert found["scores"] == {**scores, "k": len(data.fitting) // 50, "chance": 33.33}
    assert found["pixels"] == pixel_landmark(data, Augment(), Memory(), CPU)


def test_an_encoder_sees_pixels_by_its_own_mean_and_deviation_in_parts(monkeypatch):
    monkeypatch.setattr(card_module, "PIXELS", 3 * 64)
    data, seen = tiny_data(), []
    encoder = Encoder(lambda images: seen.append(images) or flat(images), mean=(0.1, 0.2, 0.3), std=(0.5, 1, 2))
    latents = Adapter(encoder, data).latents(normalize(data.train_images[:7], data.mean, data.std))
    wanted = normalize(data.train_images[:7], torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1, 2]))
    torch.testing.assert_close(torch.cat(seen), wanted, atol=1e-5, rtol=0)
    assert list(map(len, seen)) == [3, 3, 1] and torch.equal(latents["h"], flat(torch.cat(seen)))


def test_without_labels_there_is_no_probe_and_no_class(tmp_path):
    found = card(flat, *arrays(labeled=False), machine=CPU)
    assert found["scores"] is None and found["images"]["cued"] == 24
    text = page(found)
    assert "without classes: no probe, no kNN, no concept bits" in text
    assert not any(words in text for words in ("oncept bits**", "of its class", "Probe"))
    assert "| cue | episode bits | 8x8 pixels |\n" in text
    write_card(tmp_path, found)
    assert (tmp_path / "card.png").stat().st_size > 10_000


def test_a_fifth_of_each_class_is_held_out_and_fresh_weights_are_the_headline(measured):
    assert measured["data"]["classes"] == ["a", "b", "c"] and measured["images"]["test"] == 24
    assert measured["images"]["stored"] == 96 and measured["gallery"] == {"smallest": 4, "largest": 4}
    named = {**measured, "encoder": {**measured["encoder"], "weights": "weights of MyNet_A1.safetensors"}}
    assert "\n\nWeights as given.\n" in page(measured) and "\n\nWeights of MyNet_A1.safetensors.\n" in page(named)
    fresh = page({**measured, "encoder": {**measured["encoder"], "fresh": True}})
    assert fresh.splitlines()[2].startswith("**Freshly initialized weights (seed 0), not trained ones**")


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda images: images.mean((1, 2, 3)), "mine returns [41] of 41 images; allowed: features [41, D]"),
        (lambda images: images, "mine returns [41, 3, 8, 8] of 41 images"),
        (lambda images: flat(images)[:1], "mine returns [1, 48] of 41 images"),
        (lambda images: flat(images) / 0, "mine returns numbers that are not finite"),
        (lambda images: [["a"]] * len(images), "mine fails on images [41, 3, 8, 8]: "),
        (lambda images: 1 / 0, "mine fails on images [41, 3, 8, 8]: division by zero"),
    ],
)
def test_what_is_no_feature_is_refused(encode, words):
    refused(lambda: card(encode, *arrays(50), name="mine", machine=CPU), words)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(9, 3, 8, 8), None, "images are float32 [9, 3, 8, 8]; allowed: uint8 [N, 3, S, S]"),
        (torch.zeros(9, 8, 8, 3, dtype=torch.uint8), None, "images are uint8 [9, 8, 8, 3]"),
        (arrays()[0], [0, 1], "labels are [2]; allowed: an integer from 0 on for each of 120 images"),
        (arrays()[0], [-1] * 120, "labels are [120]; allowed"),
        (*arrays(), "classes are 1 names; allowed: one for each label from 0 to 2"),
        (arrays(4)[0], None, "no class has two test images that differ"),
    ],
)
def test_images_and_labels_that_will_not_do_are_refused(images, labels, words):
    refused(lambda: card(flat, images, labels, classes=["a"], machine=CPU), words)


def test_fresh_batchnorm_takes_its_statistics_from_the_images():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()).eval()
    data = tiny_data(40, 12)
    measure(Encoder(network, fresh=False), data, CPU)
    assert network[1].running_mean.tolist() == [0] * 4
    measure(Encoder(network, fresh=True), data, CPU)
    assert (network[1].running_mean != 0).all() and network[1].num_batches_tracked == 1


@pytest.mark.parametrize("wrong", [{"std": [0.0, 1.0, 1.0]}, {"mean": [float("nan"), 0.0, 0.0]}])
def test_a_normalization_that_will_not_do_is_refused_before_anything_is_read(wrong):
    refused(lambda: card_of_pictures("none.onnx", "nowhere", **wrong), "--mean and --std", "above 0")


# The command and the page


def pictures(folder: Path, classes: int) -> Path:
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in tiny_data(60).train_images]
    return write_folder(folder, {f"class{row % classes}/{row}.png": encoded(image) for row, image in enumerate(images)})


def test_the_command_writes_a_page_a_picture_and_the_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENGRAM_DEVICE", "cpu")
    monkeypatch.setenv("ENGRAM_THREADS", str(torch.get_num_threads()))
    Path("some_encoder.py").write_text(MODULE)
    folder = pictures(tmp_path / "photos", 3)
    command = ["some_encoder.py:encode", "--images"]
    refused(lambda: main([*command, str(folder)]), "--size is None; allowed: 8 to 512")
    main([*command, str(folder), "--size", "8"])
    written = Path("cards/some_encoder.py_encode")
    assert "| cue | episode bits | 8x8 pixels | concept bits | 8x8 pixels |" in capsys.readouterr().out
    assert {path.name for path in written.iterdir()} == {"card.md", "card.png", "card.json"}
    found, text = read_json(written / "card.json"), (written / "card.md").read_text()
    both = [found[whose]["cues"]["trained"] for whose in ("memory", "pixels")]
    bits = [f"{each[key] + 0:.2f}" for key in ("episode_bits", "concept_bits") for each in both]
    assert f"| crop, color, gray | {' | '.join(bits)} |" in text and bits[2] != bits[3]
    assert text == page(found) and "{" not in text and len(text.splitlines()) < 45
    assert f"Probe top-1 {found['scores']['top1']:.1f} %" in text and "folder photos, 8 x 8 pixels, 3 classes" in text
    main([*command, str(pictures(tmp_path / "one", 1)), "--size", "8", "--to", "there"])
    assert "without classes" in Path("there/card.md").read_text()
    for options, words in (
        (["--size", "0"], "--size is 0; allowed: 8 to 512"),
        (["--size", "8", "--to", "some_encoder.py"], "cannot write to some_encoder.py: some_encoder.py is no folder"),
        (["--size", "8", "--to", "some_encoder.py/in"], "is no folder; name another folder with --to"),
    ):
        refused(lambda options=options: main([*command, "nowhere", *options]), words)


def test_the_card_of_weights_lies_beside_that_of_the_fresh_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(card_module, "measure", lambda *_: {})
    monkeypatch.setattr(card_module, "write_card", lambda folder, _: [str(folder)])
    folder, name = str(pictures(tmp_path / "photos", 3)), f"torchvision:{SMALL}"
    save_file(torchvision.models.get_model(SMALL).state_dict(), "plain.safetensors")
    of_weights = card_of_pictures(name, folder, 8, weights=Path("plain.safetensors"))
    assert card_of_pictures(name, folder, 8) == [f"cards/torchvision_{SMALL}"]
    assert of_weights == [f"cards/torchvision_{SMALL}_plain"]


def test_errors_name_the_options_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("some_encoder.py").write_text(MODULE)
    Path("empty").mkdir()
    write_folder(tmp_path / "bad", {f"{label}/{row}.png": b"" for label in "ab" for row in range(4)})
    command = ["some_encoder.py:encode", "--size", "8", "--images"]
    assert refused(lambda: main([*command, "none"])).startswith("--images is 'none', where")
    assert refused(lambda: main([*command, "empty"])).endswith("name your folder, zip or tar by --images")
    assert refused(lambda: main([*command, "bad"])).endswith("; mend or remove them, or give --on-bad-image skip")
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    assert refused(lambda: main([*command, "bad"])).endswith("lower --size")


@pytest.mark.slow
def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/card.md").read_text(), re.DOTALL)
    exec(compile(example, "docs/card.md", "exec"), {})
    top1, bits = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert top1 > 80 and bits > 0.3 and json.loads(Path("cards/means/card.json").read_text())["scores"]["top1"] == top1
