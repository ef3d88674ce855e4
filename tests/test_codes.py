"""Binary codes in the pipeline: a layer over a whole map, what the linear stage says of codes, their table."""

import dataclasses

import pytest
import torch

from lib.evaluate.centroid import centroid_scores, code_numbers
from lib.evaluate.codes import k_winners
from lib.evaluate.linear import evaluate
from lib.evaluate.scores import accuracy
from lib.files import read_json, write_json
from lib.methods import build_method
from lib.params.evaluation import Knn, Linear
from lib.report.records import read_record
from lib.report.tables import markdown
from tests.evaluate_fakes import MACHINE, TinyMethod, about, tiny_data
from tests.examples import pretraining
from tests.test_report import write_run


def built(encoder: str, **options):
    torch.manual_seed(0)
    return build_method(dataclasses.replace(pretraining("kwta"), encoder=encoder, image_size=32,
                                            options={"units": 128, **options}))


@pytest.mark.parametrize("encoder, width", [("sdr", 3 * 10 * 10), ("small", 512 * 4 * 4)])
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


def test_numbers_of_codes_against_their_parts():
    draw = torch.Generator().manual_seed(0)
    labels, own = torch.arange(200) % 4, torch.arange(60) % 4
    means = torch.rand(4, 30, generator=draw)
    bank = k_winners(means[labels] + 0.7 * torch.rand(200, 30, generator=draw), 6)
    codes = k_winners(means[own] + 0.7 * torch.rand(60, 30, generator=draw), 6)
    codes[:, -1] = 0  # not every row has 6 any more
    codes = k_winners(codes + 0.01 * torch.arange(30, 0, -1), 6)
    found = code_numbers(bank, labels, codes, own, 4)
    assert found["centroid"] == accuracy(centroid_scores(bank, labels, codes, 4), own)
    assert found["centroid_code"] == accuracy(centroid_scores(bank, labels, codes, 4, 6), own)
    assert found["centroid"] > 40 and found["active"] == 6
    idle = (codes.sum(0) == 0).sum().item()
    assert idle and found["unused"] == pytest.approx(100 * idle / 30)
    assert 0 < found["usage_entropy"] < 1 and 0 < found["pattern_entropy"] <= torch.tensor(60.0).log2()
    same = code_numbers(bank, labels, codes[:1].expand(60, -1), own, 4)
    assert (same["usage_entropy"], same["pattern_entropy"], same["centroid"]) == (0, 0, 25)


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
    latent["code"] = {"centroid": 33.217, "centroid_code": 30.5, "active": 26, "usage_entropy": 0.6123,
                      "pattern_entropy": 13.0071, "unused": 12.5}
    write_json(path, scores)
    page = markdown([read_record("joint", tmp_path)])
    assert "| joint | 512 | 26 | 33.22 | 30.50 | 0.612 | 13 | 12.5 |" in page
    assert page.index("## Runs") < page.index("## Binary codes") and "at most 8.64 bits" in page
