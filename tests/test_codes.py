"""Binary codes in the pipeline: a layer over a whole map, what the linear stage says of codes, their table."""

import dataclasses
import math

import pytest
import torch

from lib.evaluate.centroid import code_numbers
from lib.evaluate.codes import k_winners
from lib.evaluate.linear import evaluate
from lib.methods import build_method
from lib.params.evaluation import Knn, Linear
from lib.report.records import read_record
from lib.report.tables import markdown
from lib.runtime.files import read_json, write_json
from tests.evaluate_fakes import MACHINE, TinyMethod, about, tiny_data
from tests.examples import pretraining
from tests.test_report import write_run


def built(encoder: str, **options):
    torch.manual_seed(0)
    return build_method(
        dataclasses.replace(pretraining("kwta"), encoder=encoder, image_size=32, options={"units": 128, **options})
    )


@pytest.mark.parametrize(("encoder", "width"), [("sdr", 3 * 10 * 10), ("small", 512 * 4 * 4)])
def test_a_flat_latent_is_the_whole_map(encoder, width):
    method = built(encoder, flatten=True).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latents, features = method.latents(images), method.encoder(images)
    assert method.layer.weight.shape == (128, width)
    assert torch.equal(latents["h"], features.reshape(2, width))
    assert torch.equal(built(encoder).eval().latents(images)["h"], features.mean((2, 3)))


def test_finding_the_places_changes_neither_the_encoder_nor_the_draws():
    flat, pooled = built("sdr", flatten=True), built("sdr")
    for (name, one), other in zip(flat.encoder.state_dict().items(), pooled.encoder.state_dict().values()):
        assert torch.equal(one, other), name
    assert flat.encoder.training
    torch.manual_seed(0)
    pooled = build_method(dataclasses.replace(pretraining("simclr"), encoder="sdr"))
    assert torch.equal(pooled.encoder.conv1.weight, flat.encoder.conv1.weight)


def rows_of(*active: tuple[int, int]) -> torch.Tensor:
    """Codes of six units, of which these are active."""
    return torch.stack([torch.eye(6)[list(units)].sum(0) for units in active])


def test_numbers_of_codes_against_numbers_by_hand():
    """Centroids (1, .4, 0, .2, .2, .2) and (0, 0, .5, .75, .75, 0), made codes of units 0, 1 and of 3, 4.

    The third code, {1, 2}, of the first class, has cosines with the centroids that are as .4 / 1.28^(1/2) = .354 to
    .5 / 1.375^(1/2) = .426, but shares a unit with the first one's code alone.
    """
    bank = rows_of((0, 1), (0, 1), (0, 3), (0, 4), (0, 5), (3, 4), (3, 4), (2, 3), (2, 4))
    labels = torch.tensor([0] * 5 + [1] * 4)
    codes, own = rows_of((0, 1), (0, 1), (1, 2), (3, 4)), torch.tensor([0, 1, 0, 1])
    quarter, third = 2 - 0.75 * math.log2(3), math.log2(3) - 2 / 3  # bits of a coin of 1/4 or 3/4, and of 1/3
    assert code_numbers(bank, labels, codes, own, 2) == pytest.approx(
        {
            "centroid": 50,
            "centroid_code": 75,
            "active": 2,
            "usage_entropy": (1 + 4 * quarter) / 6 / third,  # units 0 to 4 in 2, 3, 1, 1, 1 of 4 codes
            "pattern_entropy": 1.5,
            "unused": 100 / 6,
        }
    )
    same = code_numbers(bank, labels, codes[:1].expand(4, -1), own, 2)
    assert (same["usage_entropy"], same["pattern_entropy"], same["centroid"]) == (0, 0, 50)


class Codes(TinyMethod):
    """Its second latent is the code of its first."""

    def latents(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        h = super().latents(images)["h"]
        return {"h": h, "code": k_winners(h, 3)}


def test_the_linear_stage_says_more_of_codes_alone(tmp_path):
    method = Codes().eval().requires_grad_(False)
    method.halves = False
    found = evaluate(method, about(), tiny_data(), Linear(epochs=2, batch_size=32, study_epochs=0), Knn(k=10), MACHINE)
    code = found.record["latents"]["code"]["code"]
    assert code["active"] == 3 and 0 < code["centroid"] < 100
    assert found.metrics["code"]["centroid"] == code["centroid"]
    assert set(found.metrics["h"]) == {"top1", "top5", "knn"}
    assert "code" not in found.record["latents"]["h"] and "centroid" not in found.metrics


def test_codes_have_a_table_of_their_own(tmp_path):
    write_run(tmp_path, "joint")
    assert "## Binary codes" not in markdown([read_record("joint", tmp_path)])
    path = tmp_path / "data/scores/joint.json"
    scores = read_json(path)
    latent = next(iter(scores["latents"].values()))
    latent["code"] = {
        "centroid": 33.217,
        "centroid_code": 30.5,
        "active": 26,
        "usage_entropy": 0.6123,
        "pattern_entropy": 13.0071,
        "unused": 12.5,
    }
    write_json(path, scores)
    page = markdown([read_record("joint", tmp_path)])
    assert "| joint | 512 | 26 | 33.22 | 30.50 | 0.612 | 13 | 12.5 |" in page
    assert page.index("## Runs") < page.index("## Binary codes") and "at most 8.64 bits" in page
