"""What the stage memory writes of a variant, and of pixels."""

import json
import math

import pytest
import torch

from lib.evaluate import memory as memory_stage
from lib.evaluate.codes import k_winners
from lib.evaluate.cues import CURVE, TRAINED, UNSEEN, cues
from lib.evaluate.galleries import unit_pixels
from lib.evaluate.memory import measure_memory, pixel_landmark, pixels_8x8, write_memory
from lib.params.evaluation import Memory
from lib.params.pretraining import Augment
from lib.runtime.files import read_arrays, read_json
from tests.examples import CPU, TinyMethod, same_state, state, tiny_about, tiny_data, tiny_method
from tests.memory_toys import some_images

# --- the stage's one function

PLAIN = ["episode_bits", "concept_bits"]


def evaluation(method=None, about=None, data=None, draws=2, **augmented):
    method, data = method or tiny_method(), data or tiny_data(150, 60)
    return measure_memory(method, about or tiny_about(), data, Augment(**augmented), Memory(draws=draws), CPU)


def test_metrics_record_and_arrays_of_one_latent(tmp_path):
    method = tiny_method()
    before = state(method)
    found = evaluation(method)
    assert same_state(method, before) and method.images == 150 + 60 + 60 * (
        2 + len(UNSEEN) + 4
    )  # nothing hidden is no cue
    assert list(found.metrics) == [*PLAIN, *UNSEEN, "whitened", "z"]
    assert all(list(found.metrics[kind]) == PLAIN for kind in (*UNSEEN, "whitened", "z"))
    assert found.record["gallery"] == {"smallest": 10, "largest": 10} and found.record["main"] == "h"
    assert found.record["possible"] == {"episode_bits": 3.3219, "concept_bits": 1.585}
    latent = found.record["latents"]["h"]
    assert list(latent["cues"]) == [TRAINED, *UNSEEN, *(kind for kind in CURVE if kind not in UNSEEN)]
    assert list(latent["cues"][TRAINED]["gain_by_rank"]) == ["1", "2-5", "6-20"] and set(latent["variance"]) == {
        "class", "image", "view",
    }  # fmt: skip
    assert [row["percent"] for row in latent["occlusion"]] == [0, 12.5, 25, 37.5, 50, 62.5, 75]
    assert latent["occlusion"][0]["episode_bits"] == pytest.approx(3.3219, abs=0.05)  # the image itself
    assert found.record == json.loads(json.dumps(found.record)) and list(found.record["projections"]) == ["z_h"]
    assert found.metrics == evaluation().metrics and "willshaw" not in latent
    write_memory(found, tmp_path / "metrics/memory/v.1.json", tmp_path / "data/memory/v.1")
    assert read_json(tmp_path / "metrics/memory/v.1.json") == found.metrics
    assert read_json(tmp_path / "data/memory/v.1.json") == found.record
    arrays = read_arrays(tmp_path / "data/memory/v.1.npz")
    kinds = (TRAINED, *UNSEEN)
    assert set(arrays) == {
        "images",
        "labels",
        "half",
        *(f"{q}_{kind}" for q in ("episode", "concept") for kind in kinds),
    }
    assert arrays["episode_shift_4"].dtype == "float32" and len(arrays["images"]) == 60
    assert arrays["concept_trained"].mean() == pytest.approx(found.metrics["concept_bits"], abs=1e-4)


def test_several_latents_and_a_single_draw():
    found = evaluation(tiny_method(("upper", "lower")), draws=1)
    assert list(found.record["latents"]) == ["upper", "lower", "both", "mean"]
    assert list(found.record["projections"]) == ["z_upper", "z_lower"]
    assert found.metrics["episode_bits"] == found.record["latents"]["upper"]["cues"][TRAINED]["episode_bits"]
    assert found.record["latents"]["both"]["width"] == 16 and "variance" not in found.record["latents"]["upper"]


def test_codes_have_a_willshaw_memory_and_no_whitened_control():
    class Codes(TinyMethod):
        def latents(self, images):
            h = super().latents(images)["h"]
            return {"code": k_winners(h, 3), "h": h}

        def project(self, latents):
            return {}

    found = evaluation(Codes().eval().requires_grad_(False))
    code = found.record["latents"]["code"]
    assert list(found.metrics) == [*PLAIN, *UNSEEN] and "whitened" not in code
    assert {row["codes"] for row in code["willshaw"]} == {"learned", "random"}
    assert "whitened" in found.record["latents"]["h"] and found.record["projections"] == {}


def test_a_variant_changes_no_cue(monkeypatch):
    """Neither its seed nor its own augmentation."""
    seen = []
    monkeypatch.setattr(memory_stage, "cues", lambda *given: seen.append(list(cues(*given))) or seen[-1])
    for seed in (0, 1):
        about = tiny_about(seed)
        about["pretraining"]["augment"]["flip"] = 0.5 * seed
        evaluation(tiny_method(seed=seed), about, draws=1)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(torch.equal(torch.cat(a), torch.cat(b)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("count", [6, 9])
def test_galleries_of_one_image_have_no_episode(count):
    found = evaluation(data=tiny_data(150, count), draws=1)
    assert found.record["possible"]["episode_bits"] == found.metrics["episode_bits"] == 0
    assert found.record["images"]["cued"] == 6 and "recall21" not in found.metrics


def test_recall_among_21_needs_21():
    found = evaluation(data=tiny_data(150, 132), draws=1)
    assert list(found.metrics)[:3] == [*PLAIN, "recall21"] and 0 <= found.metrics["recall21"] <= 1


def test_pixels_take_the_place_of_a_method():
    record = pixel_landmark(tiny_data(150, 60), Augment(), Memory(draws=1), CPU)
    assert record["cues"]["noise_0.1"]["episode_bits"] == pytest.approx(math.log2(10), abs=0.1)
    assert record["width"] == 192 and "whitened" in record
    assert pixels_8x8(some_images()).shape == (6, 192) and unit_pixels(some_images()).shape == (6, 3072)
