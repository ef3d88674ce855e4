"""The Willshaw memory and the nearest centroid (docs/methods.md, 12), against theory and slow twins."""

import math

import numpy
import pandas
import pytest
import torch

from lib.evaluate.centroid import centroid_scores, centroids
from lib.evaluate.codes import k_winners
from lib.evaluate.scores import accuracy
from lib.evaluate.willshaw import (
    capacity,
    density,
    excitation,
    expected_spurious,
    measure,
    noisy_cues,
    overlap,
    partial_cues,
    recall,
    recall_winners,
    store,
)
from lib.report.willshaw import report
from lib.runtime.errors import UserError
from lib.runtime.files import write_arrays


def random_codes(count: int, units: int, active: int, seed: int = 0) -> torch.Tensor:
    return k_winners(torch.rand(count, units, generator=torch.Generator().manual_seed(seed)), active)


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_store_and_recall_against_slow_twins():
    codes = random_codes(6, 20, 4)
    weights = [[float(any(code[u] and code[v] for code in codes.tolist())) for v in range(20)] for u in range(20)]
    assert store(codes).tolist() == weights
    cues = partial_cues(codes, 2, stream())
    found = recall(store(codes), cues)
    for cue, answer in zip(cues.tolist(), found.tolist()):
        excited = [sum(weights[u][v] for u in range(20) if cue[u]) for v in range(20)]
        assert answer == [float(value == sum(cue)) for value in excited]


@pytest.mark.parametrize("kept", [1, 3, 8])
def test_one_code_comes_back_from_any_part(kept):
    code = random_codes(1, 64, 8)
    cue = partial_cues(code, kept, stream())
    assert torch.equal(recall(store(code), cue), code) and torch.equal(recall_winners(store(code), cue, 8), code)


def test_what_was_stored_is_never_missed():
    codes = random_codes(300, 64, 8)  # far beyond what it can hold
    found = recall(store(codes), partial_cues(codes, 3, stream()))
    assert overlap(found, codes).tolist() == [8.0] * 300


def test_cues_hold_as_many_units_as_they_should():
    codes = random_codes(9, 50, 10)
    part, noise = partial_cues(codes, 4, stream()), noisy_cues(codes, 3, stream())
    assert part.sum(1).tolist() == [4.0] * 9 and overlap(part, codes).tolist() == [4.0] * 9
    assert noise.sum(1).tolist() == [10.0] * 9 and overlap(noise, codes).tolist() == [7.0] * 9
    assert not torch.equal(part[0], part[1])


def test_the_matrix_fills_as_theory_says():
    theory = 1 - (1 - (102 / 2048) ** 2) ** 100
    assert theory == pytest.approx(0.2199, abs=5e-5)
    assert density(store(random_codes(100, 2048, 102))) == pytest.approx(theory, abs=0.005)


def exactly_spurious(units: int, active: int, stored: int, cue: int) -> float:
    """The mean number of spurious units of random codes, with no one of the matrix taken for independent of another.

    Inclusion and exclusion over the units of the cue that a unit outside the stored code is not connected with: each of
    the other codes has that unit with probability k / D, and then misses j given units as ``missed`` says.
    """
    missed = [math.comb(units - 1 - j, active - 1) / math.comb(units - 1, active - 1) for j in range(cue + 1)]
    none_of_them = [(1 - active / units * (1 - share)) ** (stored - 1) for share in missed]
    return (units - active) * math.fsum((-1) ** j * math.comb(cue, j) * none for j, none in enumerate(none_of_them))


@pytest.mark.parametrize(
    ("units", "active", "stored", "cue", "draws"), [(128, 8, 100, 4, 100), (128, 8, 200, 8, 50), (256, 13, 300, 6, 20)]
)
def test_spurious_units_of_random_codes_are_as_many_as_expected(units, active, stored, cue, draws):
    """To six binomial deviations, at most a fifteenth: the cues of a draw share its matrix, so that its mean varies
    about twice as much as if each unit of each recall came by itself."""
    cues, found = stream(), []
    for seed in range(draws):
        codes = random_codes(stored, units, active, seed)
        answer = recall(store(codes), partial_cues(codes, cue, cues))
        found.append((answer.sum(1) - overlap(answer, codes)).mean().item())
    expected = exactly_spurious(units, active, stored, cue)
    share = expected / (units - active)
    deviation = math.sqrt(share * (1 - share) * (units - active) / (stored * draws))
    assert 6 * deviation < expected / 15
    assert sum(found) / draws == pytest.approx(expected, abs=6 * deviation)


@pytest.mark.parametrize("numbers", [(128, 8, 100, 4), (128, 8, 200, 8), (256, 13, 300, 6), (512, 20, 600, 5)])
def test_theory_says_about_as_many_as_are_expected(numbers):
    assert expected_spurious(*numbers) == pytest.approx(exactly_spurious(*numbers), rel=0.03)


def test_theory_is_too_low_where_few_are_wrong():
    assert expected_spurious(512, 20, 200, 10) < 0.2 * exactly_spurious(512, 20, 200, 10) < 0.01


def test_expected_spurious_at_its_corners():
    assert expected_spurious(100, 10, 0, 3) == 0
    assert expected_spurious(4, 2, 1, 1) == 0.5 and expected_spurious(4, 2, 2, 2) == 2 * 0.4375**2
    assert expected_spurious(100, 10, 10**6, 3) == pytest.approx(90)
    assert expected_spurious(100, 10, 50, 10) < expected_spurious(100, 10, 50, 5) < expected_spurious(100, 10, 90, 5)


def test_winners_prefer_the_cue_where_excitation_ties():
    weights = torch.ones(4, 4)
    assert recall_winners(weights, torch.tensor([[0.0, 0, 1, 1]]), 2).tolist() == [[0, 0, 1, 1]]
    assert excitation(weights, torch.tensor([[0.0, 0, 1, 1]])).tolist() == [[2.0] * 4]


def test_a_measurement_of_few_and_of_too_many_codes():
    codes = random_codes(2000, 256, 13)
    few, many = (row for row in capacity(codes, [20, 2000], "part", [0.5], seed=0))
    assert few["completion"] == many["completion"] == 1
    assert few["found"] == 100 and few["winners"] > 0.99 and few["spurious"] < 0.5
    assert many["winners"] < 0.9 and many["spurious"] > 20 and many["density"] > 0.9
    assert few["share"] == round(0.5 * 13) / 13
    noise = measure(codes[:20], "noise", 0.8, seed=0)
    assert noise.winners > 0.95 and math.isnan(noise.expected)


def test_equal_codes_are_not_told_apart():
    assert measure(random_codes(1, 64, 8).expand(5, -1), "part", 0.5, seed=0).found == 0


def test_a_measurement_is_the_same_twice():
    codes = random_codes(50, 128, 9)
    first, second = (capacity(codes, [10, 50], "noise", [0.5, 0.9], 3) for _ in range(2))
    assert repr(first) == repr(second)


def test_centroids_are_the_means_of_their_classes():
    rows, labels = torch.tensor([[1.0, 0], [3, 0], [0, 5]]), torch.tensor([0, 0, 2])
    assert centroids(rows, labels, 3).tolist() == [[2, 0], [0, 0], [0, 5]]
    scores = centroid_scores(rows, labels, torch.tensor([[1.0, 1], [0, 1]]), 3)
    torch.testing.assert_close(scores, torch.tensor([[0.5**0.5, 0, 0.5**0.5], [0, 0, 1]]))


def test_codes_near_their_class_are_read_by_centroids_and_by_codes_of_centroids():
    prototypes = random_codes(5, 200, 10)
    labels = torch.arange(100) % 5
    codes = noisy_cues(prototypes[labels], 4, stream())
    scores = [centroid_scores(codes[:50], labels[:50], codes[50:], 5, count) for count in (0, 10)]
    assert all(accuracy(score, labels[50:]) == 100 for score in scores)
    shuffled = labels[torch.randperm(100, generator=stream())]
    assert accuracy(centroid_scores(codes[:50], shuffled[:50], codes[50:], 5), shuffled[50:]) < 60


def embeddings(folder, codes: torch.Tensor, labels: torch.Tensor) -> None:
    write_arrays(
        folder / "data/embeddings/toy.npz",
        {
            "h": torch.rand(len(codes), 3).numpy(),
            "code": codes.numpy(),
            "labels": labels.numpy(),
            "indices": torch.arange(len(codes)).numpy(),
            "classes": numpy.array(["a", "b", "c", "d", "e"]),
            "latents": numpy.array(["h", "code"]),
            "projections": numpy.array([], dtype=str),
        },
    )


def test_the_report_of_a_variant(tmp_path):
    labels = torch.arange(300) % 5
    embeddings(tmp_path, noisy_cues(random_codes(5, 128, 7)[labels], 3, stream()), labels)
    lines = report("toy", tmp_path)
    assert lines[0] == "toy, latent code: 300 test images, 128 units, 7 active"
    assert lines[1].startswith("usage entropy 0.") and "bits of 8.23" in lines[1]
    table = pandas.read_csv(tmp_path / "plots/willshaw/toy.csv")
    assert set(table.codes) == {"learned", "random"} and set(table.cue) == {"part", "noise"}
    half = table[(table.cue == "part") & (table.share == 4 / 7)].set_index(["codes", "stored"])
    assert set(half.loc["random"].index) == {10, 20, 50, 100, 200, 300}
    assert half.loc[("learned", 300), "spurious"] > half.loc[("random", 20), "spurious"]
    picture = (tmp_path / "plots/willshaw/toy.png").read_bytes()
    report("toy", tmp_path)
    assert picture == (tmp_path / "plots/willshaw/toy.png").read_bytes() and len(picture) > 10_000


def test_a_variant_without_codes_is_refused(tmp_path):
    embeddings(tmp_path, torch.rand(20, 8), torch.arange(20) % 5)
    with pytest.raises(UserError, match=r"variant toy has no binary code among its latents \(h, code\); allowed: "):
        report("toy", tmp_path)
