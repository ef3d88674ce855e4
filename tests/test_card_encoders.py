"""What names an encoder for the memory card, its weights, and refusals of one line."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from lib.methods import build_method
from lib.methods.export import save_method
from lib.takeaway.encoders import find_encoder
from tests.examples import pretraining, tiny_data
from tests.faults.refusals import refused
from tests.make_archives import write_folder

SMALL = "shufflenet_v2_x0_5"  # the quickest of torchvision's to build


def test_a_library_model_is_the_same_fresh_network_each_time_without_its_classifier():
    images = torch.randn(2, 3, 32, 32)
    first, _, again = (find_encoder(f"torchvision:{SMALL}"), torch.rand(1), find_encoder(f"torchvision:{SMALL}"))
    assert first.fresh and first.weights == "freshly initialized (seed 0)"
    assert first.size == 224 and first.mean == [0.485, 0.456, 0.406]
    assert first.encode(images).shape == (2, 1024) and torch.equal(first.encode(images), again.encode(images))


@pytest.mark.parametrize(("name", "given"), [("googlenet", True), ("inception_v3", True), ("googlenet", False)])
def test_weights_of_torchvision_get_the_input_that_they_were_trained_on(name, given, monkeypatch, tmp_path):
    """As torchvision builds these two where it fetches weights itself: images are normalized anew."""
    built: list[dict] = []
    monkeypatch.setattr(torchvision.models, "get_model", lambda _, **settings: built.append(settings))
    refused(lambda: find_encoder(f"torchvision:{name}", tmp_path / "a.pt" if given else None), "cannot be built")
    assert built == [{"weights": None, "transform_input": True} if given else {"weights": None}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model whose weights are not the fresh ones, in files as people keep them, by their kind."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    model = torchvision.models.get_model(SMALL, num_classes=7).eval()
    state = model.state_dict()
    save_file(state, folder / "plain.safetensors")
    torch.save(state, folder / "plain.pt")
    parallel = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, "state_dict": parallel}, folder / "nested.pth")
    return model, folder


@pytest.mark.parametrize("file", ["plain.safetensors", "plain.pt", "nested.pth"])
def test_weights_come_from_a_local_file_whatever_its_classifier(weights, file):
    model, folder = weights
    found = find_encoder(f"torchvision:{SMALL}", folder / file)
    assert not found.fresh and found.weights == f"weights of {file}"
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.fc(found.encode(images)), model(images))


class Evil:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_weights_that_will_not_do_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, folder = f"torchvision:{SMALL}", weights[1]
    half = {f"half{end}": (folder / f"plain{end}").read_bytes()[:5000] for end in (".safetensors", ".pt")}
    write_folder(tmp_path, {**half, "evil.pt": pickle.dumps({"a": Evil()}, 2), "text.pth": b"no weights"})
    torch.save([torch.zeros(2)], "list.pt")
    save_file({"conv1.0.weight": torch.zeros(3)}, "other.safetensors")
    for file in (*half, "evil.pt", "list.pt", "text.pth"):
        said = refused(lambda: find_encoder(model, Path(file)), f"{file} cannot be read as weights")
        assert said.endswith("never unpickled") and not Path("ran").exists()
    for name, file, words in (
        (model, "other.safetensors", (f"other.safetensors has not the weights of {model}: ", "Missing key")),
        (model, "none.pt", ("--weights is none.pt, which does not exist",)),
        ("model.onnx", "other.safetensors", ("allowed: with timm:NAME and torchvision:NAME alone",)),
    ):
        refused(lambda: find_encoder(name, Path(file)), *words)


MODULE = """
LIST = []

def encode(images):
    return images.mean((2, 3))
"""


def test_a_function_of_a_file_or_a_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("some_encoder.py").write_text(MODULE)
    for name in ("some_encoder.py:encode", "callable:some_encoder:encode"):
        found = find_encoder(name)
        assert found.encode(torch.ones(2, 3, 8, 8)).tolist() == [[1] * 3] * 2 and found.size is None and not found.fresh
    for name, words in (
        ("some_encoder.py:decode", "some_encoder.py:decode cannot be imported: AttributeError: "),
        ("none.py:encode", "none.py:encode cannot be imported: FileNotFoundError: "),
        ("callable:no_such_module:encode", "callable:no_such_module:encode cannot be imported: ModuleNotFoundError: "),
        ("some_encoder.py:LIST", "is a list; allowed: a function of images"),
        ("some_encoder.py", "some_encoder.py names no function; give it after a colon, as in my_model.py:encode"),
        ("callable:some_encoder", "names no function"),
    ):
        refused(lambda: find_encoder(name), words)


def test_a_file_of_ours_is_its_main_latent_with_its_own_normalization(tmp_path):
    params = pretraining("dual")
    method = build_method(params).eval()
    save_method(tmp_path / "dual.safetensors", method, params, tiny_data().about)
    found = find_encoder(str(tmp_path / "dual.safetensors"))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(found.encode(images), method.latents(images)["upper"])
    assert found.mean == tiny_data().about["mean"] and found.size == 8
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    words = "is no encoder of data/encoders; name the network of these weights, as in timm:"
    refused(lambda: find_encoder(str(tmp_path / "foreign.safetensors")), words)


@pytest.mark.parametrize("normalized", [True, False])
def test_an_onnx_file(tmp_path, normalized):
    onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [make.make_node("GlobalAveragePool", ["x"], ["p"]), make.make_node("Flatten", ["p"], ["h"])]
    ends = (("x", ["n", 3, 8, 8]), ("h", ["n", 3]))
    given, out = ([make.make_tensor_value_info(name, kind, shape)] for name, shape in ends)
    graph = make.make_graph(nodes, "g", given, out)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    if normalized:
        onnx.helper.set_model_props(model, {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 2]"})
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    found = find_encoder(str(path))
    assert found.size == 8 and list(found.mean) == ([0.1, 0.2, 0.3] if normalized else [0, 0, 0])
    torch.testing.assert_close(torch.as_tensor(found.encode(torch.ones(5, 3, 8, 8))), torch.ones(5, 3))
    path.write_bytes(path.read_bytes()[:60])
    refused(lambda: find_encoder(str(path)), "is no ONNX network that can be read: ")


def test_timm_models_with_tags_and_without(tmp_path):
    timm = pytest.importorskip("timm", reason="the extra export is not installed")
    found = find_encoder("timm:test_resnet")
    assert found.fresh and found.encode(torch.randn(2, 3, 64, 64)).ndim == 2
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=9).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    known = find_encoder("timm:test_resnet.r160_in1k", tmp_path / "w.safetensors")
    images = torch.randn(2, 3, 64, 64)
    assert known.size == 160 and torch.equal(model.get_classifier()(known.encode(images)), model(images))
    for name, file, words in (
        ("timm:resnet18.a1_in1k", None, "the weights a1_in1k are on a hub, and nothing is fetched; give them"),
        ("timm:resnet19", None, "timm has no model 'resnet19' (did you mean resnet18?)"),
        ("timm:test_resnet.none", tmp_path / "w.safetensors", "timm:test_resnet.none cannot be built: "),
    ):
        refused(lambda: find_encoder(name, file), words)


@pytest.mark.parametrize(("package", "name"), [("timm", "timm:resnet18"), ("onnxruntime", "model.onnx")])
def test_a_missing_package_is_named(package, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").touch()
    monkeypatch.setitem(sys.modules, package, None)
    refused(lambda: find_encoder(name), f"{name} needs the package {package}, ", f": pip install {package}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf-hub:timm/resnet18.a1_in1k", "names no encoder; allowed: timm:NAME, "),
        ("resnet18", "; nothing is fetched from a hub"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19' (did you mean resnet18?)"),
        ("torchvision:squeezenet1_1", "ends without a linear classifier"),
        ("none.onnx", "none.onnx does not exist"),
    ],
)
def test_a_name_that_will_not_do_is_refused(name, words):
    refused(lambda: find_encoder(name), words)
