"""An exported encoder is the one that was trained, in torchvision, timm and ONNX Runtime; the card says what is so.

The code that the model card shows is run as it stands.
"""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from lib.commands import export as main
from lib.methods import build_method
from lib.methods.base import Method
from lib.methods.export import encoder_file, save_method
from lib.runtime.files import write_json
from lib.takeaway import export
from lib.takeaway.export import export_encoder
from tests.examples import SOME, pretraining, tiny_data
from tests.faults.refusals import refused
from tests.project import write_lock

EXTRA = "the extra export is not installed"
IMPORTS = "import torch\nfrom torch import nn\n"


def trained(variant: str, folder: Path, **changes) -> Method:
    """Write a variant's encoder below ``folder``: random weights, BatchNorm statistics that have moved."""
    params = pretraining(variant, **changes)
    torch.manual_seed(0)
    method = build_method(params).train()
    for _ in range(3):
        method.latents(torch.randn(16, 3, 16, 16))
    save_method(folder / encoder_file(variant), method, params, tiny_data().about)
    return method.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """The folder of an exported ResNet-18, its method, and images with their latent."""
    pytest.importorskip("onnx", reason=EXTRA)
    pytest.importorskip("onnxscript", reason=EXTRA)
    folder = tmp_path_factory.mktemp("resnet")
    method = trained("simclr", folder, encoder="resnet18")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["simclr"])
    images = torch.randn(5, 3, 16, 16)
    return folder / "exports/simclr", images, method.latents(images)["h"]


@pytest.fixture
def without_onnx(tmp_path, monkeypatch):
    """The working folder of an export that writes no network, which takes the longest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "onnx_network", lambda *_: b"ONNX")
    return tmp_path


def shown(folder: Path, library: str) -> str:
    """The code of the card after ``With <library>:``."""
    return re.search(rf"With {library}:\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def run(folder: Path, library: str, imports: str, images: Tensor, monkeypatch) -> dict:
    monkeypatch.chdir(folder)
    names = {"images": images}
    with torch.no_grad():
        exec(f"{IMPORTS}{imports}\n{shown(folder, library)}", names)
    return names


def test_a_stock_torchvision_resnet_gives_the_same_features(resnet, monkeypatch):
    folder, images, latent = resnet
    names = run(folder, "torchvision", "import safetensors.torch, torchvision", images, monkeypatch)
    torch.testing.assert_close(names["features"], latent, atol=1e-5, rtol=1e-4)
    assert len(shown(folder, "torchvision").splitlines()) == 5, "four lines that load, and one that computes"


def test_a_stock_timm_resnet_gives_the_same_features(resnet, monkeypatch):
    timm = pytest.importorskip("timm", reason=EXTRA)
    folder, images, latent = resnet
    names = run(folder, "timm", "import timm", images, monkeypatch)
    torch.testing.assert_close(names["features"], latent, atol=1e-5, rtol=1e-4)
    seen = timm.data.resolve_model_data_config(names["model"])
    assert seen["input_size"] == [3, 16, 16] and seen["crop_pct"] == 1
    assert [seen["mean"], seen["std"]] == [tiny_data().about["mean"], tiny_data().about["std"]]
    with pytest.raises(RuntimeError, match=r"size mismatch for conv1.weight"):
        timm.create_model("local-dir:.", pretrained=True)


def test_the_folder_is_a_repository_of_the_hub(resnet, tmp_path, monkeypatch):
    """In the cache of the hub's client, without a network."""
    timm, hub = (pytest.importorskip(name, reason=EXTRA) for name in ("timm", "huggingface_hub"))
    folder, _, _ = resnet
    snapshots = tmp_path / "models--engram--simclr/snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / ("0" * 40)).symlink_to(folder)
    (snapshots.parent / "refs").mkdir()
    (snapshots.parent / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    model = timm.create_model("hf-hub:engram/simclr", cache_dir=tmp_path)
    assert model.num_features == 512 and model.num_classes == 0
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm" and card.data.tags == ["engram", "simclr"]


def latents_of(network: Path, images: Tensor) -> dict[str, Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime", reason=EXTRA)
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.as_tensor, session.run(None, {"images": images.numpy()}))))


def test_onnx_runtime_gives_the_same_features(resnet, monkeypatch):
    pytest.importorskip("onnxruntime", reason=EXTRA)
    folder, images, latent = resnet
    names = run(folder, "ONNX Runtime", "import onnxruntime", images, monkeypatch)
    torch.testing.assert_close(torch.as_tensor(names["h"]), latent, atol=1e-4, rtol=0)
    assert latents_of(folder / "model.onnx", images[:1])["h"].shape == (1, 512)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dual", *(name for name in SOME if name != "simclr")])
def test_onnx_has_every_latent_of_every_method_for_many_images(variant, tmp_path):
    pytest.importorskip("onnxscript", reason=EXTRA)
    method = trained(variant, tmp_path)
    (tmp_path / "model.onnx").write_bytes(export.onnx_network(method, {"variant": variant, "data": tiny_data().about}))
    images = torch.randn(300, 3, 16, 16)  # more than the patches of which are taken at once
    latents, found = method.latents(images), latents_of(tmp_path / "model.onnx", images)
    assert found.keys() == latents.keys()
    for name, values in latents.items():
        torch.testing.assert_close(found[name], values, atol=1e-4, rtol=0)


def test_a_network_that_is_no_resnet_has_no_config_and_says_why(without_onnx, capsys):
    trained("simclr", without_onnx)
    write_json(Path("exports/simclr/config.json"), {"of": "an earlier export"})
    main(["simclr"])
    said = "left out: config.json, since timm and torchvision have no network like this one (small)"
    assert said in capsys.readouterr().out
    assert {path.name for path in Path("exports/simclr").iterdir()} == {"model.safetensors", "model.onnx", "README.md"}
    text = Path("exports/simclr/README.md").read_text()
    assert "With ONNX Runtime" in text and "timm" not in text and "torchvision:" not in text
    assert "conv1.weight" in load_file("exports/simclr/model.safetensors")


def exported(variant: str) -> str:
    """The card of an export to the folder there."""
    export_encoder(variant, Path("there"))
    return Path("there/README.md").read_text()


def test_the_card_says_what_is_known_of_the_encoder(without_onnx):
    trained("dual", without_onnx, encoder="resnet18", gamma=0.5, seed=3)
    text = exported("dual")
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "timm" and not re.search(r"{(?!\"images\")", body)
    for words in (
        "`upper` [B, 512], `lower` [B, 512]",
        "`features` is the mean of the whole map, which is none of the latents",
        "trained without labels",
        "150 training images, of which 15 are for validation",
        tiny_data().about["checksum"],
        "model 2, joint    NT-Xent + gamma * distance of the two views",
        "term: pull, latents: halves",
        "| gamma | 0.5 |",
        "| seed | 3 |",
        "| optimizer.lr | 0.001 |",
        "What linear measures is not known of these weights: dvc repro linear@dual.",
        "MIT license",
    ):
        assert words in text, words
    assert json.loads(Path("there/config.json").read_text())["architecture"] == "resnet18"


def measured(variant: str) -> None:
    """What the stages linear and memory leave, as dvc.lock has it."""
    scores = {"images": {"test": 60, "train": 150, "validation": 15}, "linear": {"mode": "probe"}, "knn": {"k": 7}}
    possible = {"episode_bits": 3, "concept_bits": 1.6}
    files = {
        f"metrics/{variant}.json": {"top1": 61.25, "study_top1": None, "z": {"top1": 50.5}},
        f"data/scores/{variant}.json": scores,
        f"metrics/memory/{variant}.json": {"episode_bits": 1.25, "z": {"episode_bits": 0.75}},
        f"data/memory/{variant}.json": {"images": {"stored": 150, "cued": 48}, "possible": possible, "draws": 4},
    }
    for path, values in files.items():
        write_json(Path(path), values)
    encoder, names = encoder_file(variant).as_posix(), list(files)
    write_lock({f"linear@{variant}": ([encoder], names[:2]), f"memory@{variant}": ([encoder], names[2:])})


def test_figures_are_of_these_weights_or_not_given(without_onnx):
    trained("simclr", without_onnx)
    measured("simclr")
    text = exported("simclr")
    for words in ("| top1 | 61.25 |", "| z.top1 | 50.5 |", "| z.episode_bits | 0.75 |", "the 7 nearest of 150"):
        assert words in text, words
    assert "at most 3)" in text and "not known" not in text and "| None" not in text
    write_json(Path("metrics/simclr.json"), {"top1": 99.9})  # by hand
    text = exported("simclr")
    assert "99.9" not in text and "What linear measures is not known of these weights" in text
    assert "| episode_bits | 1.25" in text
    trained("simclr", without_onnx, seed=1)  # other weights, or another record of them
    assert "1.25" not in exported("simclr")


def test_what_cannot_be_exported_is_refused_before_anything_is_written(without_onnx, monkeypatch):
    refused(lambda: main(["simclr"]), "simclr.safetensors does not exist")
    trained("simclr", without_onnx)
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    words = ("mine holds more than an export ", "name another folder with --to")
    refused(lambda: main(["simclr", "--to", "mine"]), *words)
    monkeypatch.undo()
    monkeypatch.chdir(without_onnx)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(lambda: main(["simclr"]), "export needs the package onnx", ": pip install onnx onnxscript")
    assert not Path("exports").exists() and [path.name for path in Path("mine").iterdir()] == ["notes.txt"]
