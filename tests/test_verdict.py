"""The verdict's maths: intervals, exact tests, corrections, every word, and what no word may be said about."""

import itertools
import math
from types import SimpleNamespace

import numpy
import pandas
import pytest
from scipy import stats

from lib.report.verdict import rows_of
from lib.verdict.judge import (
    BLIND,
    Interval,
    assay,
    compared,
    frontier_gap,
    holm,
    judge,
    keeps_probe,
    paired_image_error,
    separates,
    sign_flip,
    t_interval,
)
from tests.verdict_runs import experiment, run

RULE = experiment().rule
SURE = Interval(0.0, 0.0, 0.0, 6)


def between(low, high, n=6):
    return Interval((low + high) / 2, low, high, n)


def drawn(*shape, seed=0):
    return numpy.random.default_rng(seed).normal(size=shape)


# intervals and tests


def test_the_t_interval_is_scipys():
    values = drawn(6)
    found = t_interval([*values, math.nan], 0.9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 6)
    assert t_interval([1.0], 0.9).as_json() == {"mean": 1.0, "low": None, "high": None, "n": 1}
    assert t_interval([], 0.9).as_json() == {"mean": None, "low": None, "high": None, "n": 0}


def test_the_t_interval_covers_what_it_says_and_a_percentile_bootstrap_does_not():
    samples, draws = drawn(2000, 6), numpy.random.default_rng(1).integers(0, 6, (400, 6))
    covers = [t_interval(sample, 0.9).low <= 0 <= t_interval(sample, 0.9).high for sample in samples]
    assert numpy.mean(covers) == pytest.approx(0.9, abs=0.02)
    low, high = numpy.percentile(samples[:, draws].mean(2), [5, 95], axis=1)
    assert ((low <= 0) & (high >= 0)).mean() < 0.86


@pytest.mark.parametrize("n", [2, 3, 6, 8])
def test_sign_flip_is_the_enumeration_of_all_flips(n):
    differences = drawn(n, seed=n) + 0.5
    flips = numpy.array(list(itertools.product((1, -1), repeat=n)))
    extreme = numpy.abs(flips @ differences) >= abs(differences.sum()) - 1e-12
    assert sign_flip(differences) == pytest.approx(extreme.mean())


def test_six_seeds_of_one_sign_have_the_two_sided_p_of_one_in_32():
    assert sign_flip(numpy.arange(1.0, 7)) == pytest.approx(1 / 32) == pytest.approx(2 / 64)
    assert sign_flip(-numpy.arange(1.0, 7)) == pytest.approx(1 / 32)
    # three of them pass Holm's steps at the level of a 90 % interval, which five seeds could not
    assert max(holm(dict.fromkeys("abc", 1 / 32)).values()) <= 0.1 < max(holm(dict.fromkeys("abc", 1 / 16)).values())
    assert sign_flip([0.0, 0.0, 0.0]) == sign_flip([0.3]) == 1 and math.isnan(sign_flip([]))


def test_holm_by_hand():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.7, "c": math.nan}) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_the_paired_image_error_is_that_of_the_difference():
    first, second = drawn(500) > 0, drawn(500) + drawn(500, seed=1) > 0
    expected = 100 * stats.sem(first.astype(float) - second)
    assert paired_image_error(first, second) == pytest.approx(expected)
    assert paired_image_error(first, first) == 0


# words


def test_a_difference_is_above_below_within_or_undecided():
    cases = {(0.2, 0.3): "above", (-0.3, -0.2): "below", (-0.1, 0.1): "within", (0.05, 0.2): "undecided"}
    cases |= {(0.02, 0.08): "within", (-0.2, 0.2): "undecided", (math.nan, math.nan): "undecided"}
    assert {ends: compared(between(*ends), 0.1) for ends in cases} == cases


def test_every_word_of_h1():
    words = {(-0.9, 1): "supported", (-3, -1.1): "refuted", (-1.1, 0): "undecided", (math.nan, math.nan): "undecided"}
    assert {ends: keeps_probe(between(*ends), 1.0) for ends in words} == words


@pytest.mark.parametrize(
    ("h1", "e", "c", "p", "word"),
    [
        ("supported", (0.2, 0.4), (-0.04, 0.1), 0.09, "supported"),
        ("supported", (0.2, 0.4), (-0.04, 0.1), 0.11, "undecided"),  # not after Holm's correction
        ("supported", (0.1, 0.4), (-0.04, 0.1), 0.09, "undecided"),  # delta is 0.15
        ("supported", (0.2, 0.4), (-0.06, 0.1), 0.09, "undecided"),
        ("undecided", (0.2, 0.4), (-0.04, 0.1), 0.09, "undecided"),
        ("refuted", (0.2, 0.4), (-0.04, 0.1), 0.09, "refuted"),
        ("supported", (0.0, 0.1), (-0.04, 0.1), 0.09, "refuted"),
        ("supported", (0.2, 0.4), (-0.2, -0.1), 0.09, "refuted"),
    ],
)
def test_every_word_of_h2(h1, e, c, p, word):
    assert separates(h1, between(*e), between(*c), p, RULE) == word


def test_the_assay_asks_for_the_first_control_above_the_second():
    more, less = numpy.array([5.0, 5.1, 5.2]), numpy.array([4.5, 4.6, 4.7])
    found = assay(more, less, 4)
    assert found == {"difference": 0.5, "pooled_sd": 0.1, "n": [3, 3], "blind": False}
    assert assay(more, less, 5.1)["blind"] and assay(less, more, 4)["blind"]
    for missing in ((more[:0], less), (more[:1], less[:1])):
        assert assay(*missing, 4)["blind"]


# the frontier


def plane(c, e, n=6, noise=0.0, seed=0):
    values = numpy.array([c, e]) + noise * drawn(n, 2, seed=seed)
    return pandas.DataFrame(values, columns=["c", "e"], index=range(11, 11 + n))


CORNERS = [(1.0, 5.0), (1.5, 4.5), (2.0, 3.0)]


def gap(arm, noise=0.0, corners=CORNERS, n=3):
    return frontier_gap(arm, [plane(*at, n, noise, seed=9 + i) for i, at in enumerate(corners)], 0.9)


def test_the_gap_is_the_height_above_the_line_between_neighbors():
    assert gap(plane(1.25, 4.75)).mean == pytest.approx(0) and gap(plane(1.5, 4.8)).mean == pytest.approx(0.3)
    assert gap(plane(1.75, 3.5)).mean == pytest.approx(-0.25)
    # temperature may pass one c twice: its higher branch counts
    assert gap(plane(1.25, 4.75), corners=[*CORNERS, (1.0, 2.0)]).mean == pytest.approx(0)


def test_beyond_the_ends_of_the_frontier_there_is_no_gap():
    for c in (0.9, 2.1):
        assert math.isnan(gap(plane(c, 9.0)).mean) and compared(gap(plane(c, 9.0)), 0.1) == "undecided"


def test_the_interval_of_a_gap_is_that_of_the_contrast_of_three_means():
    arm, (left, right) = plane(1.3, 4.9, 6, 0.05), (plane(1, 5, 3, 0.05, 1), plane(1.5, 4.5, 6, 0.05, 2))
    found = frontier_gap(arm, [left, right], 0.9)
    (c, _), (c_left, e_left), (c_right, e_right) = arm.mean(), left.mean(), right.mean()
    slope, w = (e_right - e_left) / (c_right - c_left), (c - c_left) / (c_right - c_left)
    # arm and right end have the same seeds and are contrasted by seed, the left end has others
    paired = (arm.e - slope * arm.c) - w * (right.e - slope * right.c)
    alone = -(1 - w) * (left.e - slope * left.c)
    welch = stats.ttest_ind(paired, -alone, equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == (pytest.approx(welch.low), pytest.approx(welch.high))
    assert found.mean == pytest.approx(paired.mean() + alone.mean()) and found.n == 6


def test_the_interval_of_a_gap_covers_also_where_seeds_are_shared():
    shared, hits = drawn(400, 6, 2, seed=3), 0
    for trial in range(400):

        def scattered(at, n, trial=trial):
            own = 0.02 * drawn(n, 2, seed=[trial, int(100 * at[0])]) + 0.02 * shared[trial, :n]
            return pandas.DataFrame(numpy.array(at) + own, columns=["c", "e"], index=range(n))

        found = frontier_gap(scattered((1.3, 4.7), 6), [scattered((1.0, 5.0), 3), scattered((1.5, 4.5), 6)], 0.9)
        hits += found.low <= 0 <= found.high
    assert hits >= 350  # 360 less two deviations


def test_a_line_as_narrow_in_c_as_its_ends_scatter_is_no_frontier():
    arm, left, right = plane(1.92, 4.9, 6, 0.05), plane(1.9, 5, 3, 0.05, 1), plane(1.95, 4.5, 6, 0.05, 2)
    assert math.isnan(frontier_gap(arm, [left, right], 0.9).mean)


# the whole verdict


def judged(change=None, leave_out=()):
    """Of the made-up runs, without some, changed by ``change``, which gets one run's row."""
    params = experiment()
    runs = [run(params, variant) for variant in params.rule.arm_of if variant not in leave_out]
    rows = rows_of(runs, params.rule)
    return judge(params.rule, change(rows) if change else rows)


def moved(arm, **by):
    def change(rows):
        for measure, step in by.items():
            rows.loc[rows["arm"] == arm, measure] += step
        return rows

    return change


def said(found, arm="lookalikes"):
    return [found["hypotheses"][arm][key] for key in ("h1", "h2", "against_frontier", "change")]


def test_every_word_is_reachable():
    found = judged()
    assert found["state"] == "complete" and found["runs"] == {"present": 45, "of": 45, "missing": []}
    assert said(found) == ["supported", "refuted", "beyond", "above"]  # e up, c down by more than its margin
    assert said(found, "push") == ["supported", "refuted", "along", "within"]
    assert said(judged(moved("lookalikes", c=0.1))) == ["supported", "supported", "beyond", "above"]
    assert said(judged(moved("lookalikes", e=-1.0)))[1:] == ["refuted", "inside", "below"]
    assert said(judged(moved("lookalikes", top1=-3.0)))[:2] == ["refuted", "refuted"]
    noise = 2 * drawn(45, 2, seed=1)
    noisy = judged(lambda rows: rows.assign(e=rows["e"] + 0.3 * noise[:, 0], top1=rows["top1"] + noise[:, 1]))
    assert said(noisy, "pull") == ["undecided"] * 4
    outside = judged(moved("lookalikes", c=-1.0))["hypotheses"]["lookalikes"]
    assert outside["against_frontier"] == "undecided" and "does not reach" in outside["note"]


def test_a_gain_that_one_test_of_three_would_show_by_chance_is_undecided():
    """Of six seeds one falls: p is 1/16 alone, and 1/8 after Holm's steps, more than the 1/10 of a 90 % interval."""

    def change(rows):
        rows = moved("lookalikes", c=0.1)(rows).set_index(["arm", "seed"])
        for seed, gain in zip(range(11, 17), (1.2, 1.0, 0.9, 1.1, 1.0, -0.05)):
            rows.loc[("lookalikes", seed), "e"] = rows.loc[("simclr", seed), "e"] + gain
        return rows.reset_index()

    found = judged(change)
    e = found["differences"]["lookalikes"]["e"]
    assert e["low"] > RULE.numbers.delta and (e["p"], e["p_holm"]) == (pytest.approx(1 / 16), pytest.approx(1 / 8))
    assert said(found) == ["supported", "undecided", "beyond", "above"]


def test_controls_that_do_not_differ_make_the_instrument_blind_whatever_the_arms_do():
    found = judged(moved("oracle", e=-2.9))
    assert found["state"] == BLIND and found["assay"]["blind"]
    assert said(found) == ["supported", BLIND, BLIND, BLIND]  # the probe is another instrument


def test_a_part_of_the_runs_gives_no_word():
    for gone in ("untrained_s16", "pull_s11", "oracle_s12"):
        found = judged(leave_out=[gone])
        assert found["state"] == "undecided: 44 of 45 runs" and found["runs"]["missing"] == [gone]
        assert {word for arm in RULE.hypotheses for word in said(found, arm)} == {"undecided"}
    lacking = judged(lambda rows: rows.assign(e=rows["e"].where(rows["variant"] != "pull_s11")))
    assert lacking["runs"]["missing"] == ["pull_s11"]
    every = list(RULE.arm_of)
    for present in (every[:1], every[1:2], every[:7], every[:25], every[:26], every[::7]):
        found = judged(leave_out=[variant for variant in every if variant not in present])
        assert found["state"] == f"undecided: {len(present)} of 45 runs"


def test_every_number_has_its_n_and_differences_are_by_seed():
    found = judged()
    rows = rows_of([run(experiment(), variant) for variant in RULE.arm_of], RULE)
    e = {arm: rows[rows["arm"] == arm].set_index("seed")["e"] for arm in RULE.arms}
    low, high = stats.ttest_rel(e["push"], e["simclr"]).confidence_interval(0.9)
    push = found["differences"]["push"]["e"]
    assert (push["low"], push["high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert push["n"] == 6 and push["p"] == pytest.approx(1 / 32) and push["p_holm"] == pytest.approx(3 / 32)
    assert found["differences"]["oracle"]["e"]["n"] == 3
    for by_measure in (*found["differences"].values(), *found["arms"].values()):
        assert all("n" in number for number in by_measure.values())
    assert found["image_error"]["pull"] == {"top1": pytest.approx(1.8, abs=0.1), "n": 6}
    assert "lambda" not in found["differences"]["pull"] and found["arms"]["pull"]["lambda"]["mean"] == 0.14


def test_noise_alone_is_rarely_called_a_gain_and_a_clear_gain_always():
    """Of 200 verdicts on arms that are the baseline in truth few support H2; of those that gain, each does."""
    rule = SimpleNamespace(numbers=SimpleNamespace(delta=1e-9, concept_margin=0.05, confidence=0.9))
    supported = {0.0: 0, 1.0: 0}
    for trial in range(200):
        for gain in supported:
            values = gain + 0.15 * drawn(6, 2, seed=trial)[:, 0]
            p = holm({"a": sign_flip(values), "b": 1, "c": 1})["a"]
            supported[gain] += separates("supported", t_interval(values, 0.9), SURE, p, rule) == "supported"
    assert supported[0.0] <= 200 * 0.05 and supported[1.0] == 200
