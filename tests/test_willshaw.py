"""The Willshaw memory and the nearest centroid (docs/methods.md, 12), against theory and slow twins."""

from dataclasses import asdict
from pathlib import Path

import pandas
import pytest
import torch

from lib.evaluate.centroid import centroid_logits, centroids
from lib.evaluate.codes import k_winners
from lib.evaluate.willshaw import expected_spurious, measure, noisy_cues, overlap, partial_cues, recall, recalls, store
from lib.report.willshaw import main
from lib.runtime.errors import UserError
from lib.runtime.files import write_json
from lib.runtime.seeds import generator


def random_codes(count: int, units: int, active: int, seed: int = 0) -> torch.Tensor:
    return k_winners(torch.rand(count, units, generator=torch.Generator().manual_seed(seed)), active)


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_store_and_recall_against_slow_twins():
    codes = random_codes(6, 20, 4)
    weights = [[float(any(code[u] and code[v] for code in codes.tolist())) for v in range(20)] for u in range(20)]
    assert store(codes).tolist() == weights
    cues = partial_cues(codes, 2, stream())
    for cue, answer in zip(cues.tolist(), recall(store(codes), cues).tolist()):
        excited = [sum(weights[u][v] for u in range(20) if cue[u]) for v in range(20)]
        assert answer == [float(value == sum(cue)) for value in excited]


def test_cues_hold_as_many_units_as_they_should():
    codes = random_codes(9, 50, 10)
    part, noise = partial_cues(codes, 4, stream()), noisy_cues(codes, 3, stream())
    assert part.sum(1).tolist() == [4.0] * 9 and overlap(part, codes).tolist() == [4.0] * 9
    assert noise.sum(1).tolist() == [10.0] * 9 and overlap(noise, codes).tolist() == [7.0] * 9
    assert not torch.equal(part[0], part[1])


def test_the_matrix_fills_as_theory_says():
    theory = 1 - (1 - (102 / 2048) ** 2) ** 100
    assert store(random_codes(100, 2048, 102)).mean().item() == pytest.approx(theory, abs=0.005)


@pytest.mark.parametrize(
    ("units", "active", "stored", "cue", "draws"), [(128, 8, 100, 4, 100), (128, 8, 200, 8, 50), (256, 13, 300, 6, 20)]
)
def test_spurious_units_of_random_codes_are_as_many_as_expected(units, active, stored, cue, draws):
    """Within a tenth: theory takes the entries of the matrix for independent (3 % here), and the mean varies."""
    cues, found = stream(), []
    for seed in range(draws):
        codes = random_codes(stored, units, active, seed)
        answer = recall(store(codes), partial_cues(codes, cue, cues))
        found.append((answer.sum(1) - overlap(answer, codes)).mean().item())
    assert sum(found) / draws == pytest.approx(expected_spurious(units, active, stored, cue), rel=0.1)


def test_a_measurement_against_a_slow_twin():
    codes = random_codes(40, 24, 4)
    rows, weights = [set(code.nonzero().flatten().tolist()) for code in codes], store(codes).tolist()
    cues = partial_cues(codes, 2, generator(0, "cue part", 40, 2))
    right = wrong = best = hits = 0
    for own, cue in zip(rows, cues.tolist()):
        excited = [sum(weights[u][v] for u in range(24) if cue[u]) for v in range(24)]
        answer = {v for v in range(24) if excited[v] == 2}
        winners = set(sorted(range(24), key=lambda v: (-excited[v], -cue[v], v))[:4])
        right, wrong, best = right + len(answer & own), wrong + len(answer - own), best + len(winners & own)
        hits += all(len(winners & own) > len(winners & other) for other in rows if other is not own)
    expected = {"stored": 40, "cue": "part", "share": 0.5, "completion": right / 160, "spurious": wrong / 40}
    expected |= {"expected": 20 * (1 - (1 - 1 / 36) ** 40) ** 2, "winners": best / 160, "found": 100 * hits / 40}
    expected |= {"density": sum(map(sum, weights)) / 24**2}
    assert asdict(measure(codes, "part", 2, seed=0)) == pytest.approx(expected)
    assert right == 160 and 0 < hits < 40


def test_wrong_units_of_a_cue_are_no_more_than_there_are_inactive_ones():
    """Of 12 units 9 are active: a cue with more than 3 wrong ones does not exist."""
    table = pandas.DataFrame(recalls(random_codes(30, 12, 9)))
    varied = table[table.varied == "cue"]
    assert sorted(set(varied.share)) == [units / 9 for units in (6, 7, 8, 9)]
    assert (varied[varied.share == 1].winners == 1).all()


def test_centroids_are_the_means_of_their_classes():
    rows, labels = torch.tensor([[1.0, 0], [3, 0], [0, 5]]), torch.tensor([0, 0, 2])
    assert centroids(rows, labels, 3).tolist() == [[2, 0], [0, 0], [0, 5]]
    logits = centroid_logits(rows, labels, torch.tensor([[1.0, 1], [0, 1]]), 3)
    torch.testing.assert_close(logits, torch.tensor([[0.5**0.5, 0, 0.5**0.5], [0, 0, 1]]))


def measured(codes: torch.Tensor | None) -> None:
    """What the command reads of the stage memory, for the variant toy, in the working folder."""
    code = {} if codes is None else {"willshaw": recalls(codes)}
    write_json(Path("data/memory/toy.json"), {"latents": {"h": {}, "code": code}})


def test_the_command_writes_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    measured(noisy_cues(random_codes(5, 128, 7)[torch.arange(300) % 5], 3, stream()))
    main(["toy"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "toy, latent code: 300 test images, 128 units, 7 active" and lines[1].startswith("written")
    table = pandas.read_csv("plots/willshaw/toy.csv")
    assert set(table.codes) == {"learned", "random"} and set(table.cue) == {"part", "noise"}
    half = table[table.varied == "number"].set_index(["codes", "stored"])
    assert half.loc[("learned", 300), "spurious"] > half.loc[("random", 20), "spurious"]
    assert (tmp_path / "plots/willshaw/toy.png").stat().st_size > 10_000


def test_a_variant_without_codes_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured(None)
    with pytest.raises(UserError, match=r"variant toy has no binary code among its latents \(h, code\); allowed: "):
        main(["toy"])
