"""The verdict: does a term keep what the probe reads, and does it make images more separable? (docs/verdict.md)

The unit is the seed: arms of one seed start from the same weights and see the same views in the same order, so that an
arm is compared with the baseline seed by seed. Images are shared by all seeds and arms; their error stands beside and
is never pooled. Legend: n seeds; e episode bits, c concept bits, top1 percent of test images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy
import pandas
from scipy import stats

from lib.params.verdict import Rule

KEYS = ("variant", "arm", "seed")  # columns of rows that are no measures
CORRECT = "correct"  # column of bool arrays [M], which test images the probe got right; may be absent
DOSE = "lambda"  # column of what was set rather than measured: its means are told, no differences
NEEDED = ("top1", "e", "c")  # a run without one of these counts as missing
NARROW = 4  # standard errors: ends of a line that are nearer in c leave its slope to chance, and no interval holds
UNDECIDED, BLIND = "undecided", "instrument blind"
AGAINST = {"above": "beyond", "within": "along", "below": "inside", UNDECIDED: UNDECIDED}


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values and its two-sided t interval; NaN where there are too few."""

    mean: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        numbers = {"mean": self.mean, "low": self.low, "high": self.high}
        return {**{key: _plain(value) for key, value in numbers.items()}, "n": self.n}


def _plain(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def half_interval(deviation: Any, n: Any, confidence: float) -> Any:
    """Half of Student's two-sided interval of a mean of n >= 2 values, of their sample deviation."""
    return stats.t.ppf((1 + confidence) / 2, n - 1) * deviation / n**0.5


def t_interval(values: Any, confidence: float) -> Interval:
    """Of the mean of independent values [n], those that are NaN left out; without ends for fewer than two."""
    values = numpy.asarray(values, dtype=float)
    values = values[~numpy.isnan(values)]
    n = len(values)
    if n < 2:
        return Interval(values.mean() if n else math.nan, math.nan, math.nan, n)
    half = half_interval(values.std(ddof=1), n, confidence)
    return Interval(values.mean(), values.mean() - half, values.mean() + half, n)


def sign_flip(differences: Any) -> float:
    """Exact two-sided p that differences [n] are symmetric about zero, from all 2^n flips of their signs.

    Its least value is 2 / 2^n: 1/32 for six seeds (1/64 is the one-sided value). NaN are left out.
    """
    differences = numpy.asarray(differences, dtype=float)
    differences = differences[~numpy.isnan(differences)]
    if len(differences) < 2:  # of one seed both flips are as extreme
        return 1.0 if len(differences) else math.nan
    test = {"permutation_type": "samples", "n_resamples": numpy.inf, "vectorized": True}
    return float(stats.permutation_test((differences,), lambda x, axis: x.mean(axis), **test).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values adjusted for their number by steps down (Holm 1979); NaN counts as 1."""
    adjusted, largest = {}, 0.0
    ordered = sorted(p_values, key=lambda name: _or_one(p_values[name]))
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * _or_one(p_values[name])))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def _or_one(p: float) -> float:
    return 1.0 if math.isnan(p) else p


def paired_image_error(first: Any, second: Any) -> float:
    """Standard error, in points, of the difference of two accuracies on the same images: correct or not, bool [M]."""
    differences = numpy.asarray(first, dtype=float) - numpy.asarray(second, dtype=float)
    return float(100 * differences.std(ddof=1) / math.sqrt(len(differences)))


def compared(interval: Interval, margin: float) -> str:
    """``above`` or ``below``: the whole interval lies beyond ±margin on that side; ``within``: inside of ±margin."""
    if interval.low > margin:
        return "above"
    if interval.high < -margin:
        return "below"
    return "within" if interval.low >= -margin and interval.high <= margin else UNDECIDED


def keeps_probe(top1: Interval, margin: float) -> str:
    """H1: the arm loses less than ``margin`` points of probe accuracy."""
    return "supported" if top1.low > -margin else "refuted" if top1.high < -margin else UNDECIDED


def separates(h1: str, e: Interval, c: Interval, p: float, rule: Rule) -> str:
    """H2: more than delta episode bits are gained, with H1, without a loss of concept bits.

    ``p``: of the sign-flip test of e, adjusted over the hypotheses. One refuted part refutes the whole.
    """
    numbers = rule.numbers
    if h1 == "refuted" or e.high < numbers.delta or c.high < -numbers.concept_margin:
        return "refuted"
    gained = e.low > numbers.delta and p <= 1 - numbers.confidence
    return "supported" if h1 == "supported" and gained and c.low > -numbers.concept_margin else UNDECIDED


def frontier_gap(arm: pandas.DataFrame, frontier: Sequence[pandas.DataFrame], confidence: float) -> Interval:
    """e of an arm minus what the frontier has at the arm's c; NaN where the frontier does not reach this c.

    Columns c and e, seeds as index. The frontier joins the means of its groups by straight lines in the order given;
    of several lines above one c the highest counts, which is the hardest null; `NARROW` ones do not count. For the line
    from L to R with slope b, and weight w of R, the gap is the mean of u = e - b c over the arm minus (1 - w) times L's
    and w times R's: a linear contrast of three means. Groups of the same seeds are contrasted seed by seed, and Welch's
    interval joins those of different seeds as if they were independent: seeds that they share make it too wide, where
    they move both alike.
    """
    (c, e), n = arm[["c", "e"]].mean(), len(arm)
    best = Interval(math.nan, math.nan, math.nan, n)
    for left, right in pairwise(frontier):
        (c_left, e_left), (c_right, e_right) = left[["c", "e"]].mean(), right[["c", "e"]].mean()
        error = math.sqrt(sum(group["c"].var(ddof=1) / len(group) for group in (left, right)))
        if abs(c_right - c_left) <= NARROW * error or not min(c_left, c_right) <= c <= max(c_left, c_right):
            continue
        slope, w = (e_right - e_left) / (c_right - c_left), (c - c_left) / (c_right - c_left)
        gap = e - (e_left + w * (e_right - e_left))
        if not gap >= best.mean:  # also of none before
            contrasts: dict[tuple[int, ...], Any] = {}
            for weight, group in ((1.0, arm), (w - 1, left), (-w, right)):
                seeds = tuple(sorted(group.index))
                contrasts[seeds] = contrasts.get(seeds, 0.0) + weight * (group["e"] - slope * group["c"])
            half = _welch([values.to_numpy(dtype=float) for values in contrasts.values()], confidence)
            best = Interval(gap, gap - half, gap + half, n)
    return best


def _welch(groups: Sequence[numpy.ndarray], confidence: float) -> float:
    """Half the interval of a sum of means of independent groups (Welch and Satterthwaite)."""
    terms = [(values.var(ddof=1) / len(values), len(values) - 1) for values in groups]
    variance, spread = sum(term for term, _ in terms), sum(term**2 / freedom for term, freedom in terms)
    return stats.t.ppf((1 + confidence) / 2, variance**2 / spread) * math.sqrt(variance) if spread else 0.0


def assay(more: Any, less: Any, least: float) -> dict[str, Any]:
    """Can the instrument tell two controls apart? e by seed [n] and [m], of which the first must be the higher by more
    than ``least`` pooled standard deviations."""
    more, less = numpy.asarray(more, dtype=float), numpy.asarray(less, dtype=float)
    freedom = len(more) + len(less) - 2
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in (more, less) if len(values))
    difference = more.mean() - less.mean() if len(more) and len(less) else math.nan
    deviation = math.sqrt(squares / freedom) if freedom > 0 else math.nan
    blind = not difference > least * deviation  # also where either is NaN
    counts = {"n": [len(more), len(less)], "blind": blind}
    return {"difference": _plain(difference), "pooled_sd": _plain(deviation), **counts}


def judge(rule: Rule, rows: pandas.DataFrame) -> dict[str, Any]:
    """The whole verdict as plain numbers and words; every number with its n.

    ``rows``: a run each, with `KEYS`, the measures top1, e and c, further measures under any name, and `CORRECT`.
    From a part of the rule's runs every word is "undecided": a part could be chosen, or stopped at, by its result.
    """
    rows = rows.dropna(subset=list(NEEDED))
    missing = [variant for variant in rule.arm_of if variant not in set(rows["variant"])]
    count, present = len(rule.arm_of), len(rule.arm_of) - len(missing)
    arms = {arm: rows[rows["arm"] == arm].set_index("seed") for arm in rule.arms}
    more, less = (arms[name]["e"] for name in rule.controls)
    control = assay(more, less, rule.numbers.assay_sd)
    measures = [column for column in rows.columns if column not in (*KEYS, CORRECT)]
    baseline = arms[rule.numbers.baseline]
    differences = {
        arm: {measure: _difference(runs, baseline, measure, rule) for measure in measures if measure != DOSE}
        for arm, runs in arms.items()
        if arm != rule.numbers.baseline
    }
    for measure in ("e", "top1"):
        adjusted = holm({arm: differences[arm][measure][1] for arm in rule.hypotheses})
        for arm, p in adjusted.items():
            differences[arm][measure] = (*differences[arm][measure][:2], p)
    words = {}
    for arm in rule.hypotheses:
        words[arm] = _words(rule, differences[arm], arms[arm], [arms[name] for name in rule.frontier])
        if missing:
            words[arm] |= dict.fromkeys(("h1", "h2", "against_frontier", "change"), UNDECIDED)
        elif control["blind"]:  # the probe is no part of the instrument
            words[arm] |= dict.fromkeys(("h2", "against_frontier", "change"), BLIND)
    state = f"{UNDECIDED}: {present} of {count} runs" if missing else BLIND if control["blind"] else "complete"
    confidence = rule.numbers.confidence
    return {
        "rule": rule.name,
        "digest": rule.digest,
        "state": state,
        "runs": {"present": present, "of": count, "missing": missing},
        "assay": control,
        "hypotheses": words,
        "differences": {
            arm: {measure: _as_json(*found) for measure, found in by_measure.items()}
            for arm, by_measure in differences.items()
        },
        "image_error": {arm: _image_error(arms[arm], baseline) for arm in differences},
        "arms": {
            arm: {measure: t_interval(runs[measure], confidence).as_json() for measure in measures}
            for arm, runs in arms.items()
        },
    }


def _difference(runs: pandas.DataFrame, baseline: pandas.DataFrame, measure: str, rule: Rule) -> tuple[Any, ...]:
    """Interval and sign-flip p of the differences over the seeds that both have."""
    differences = (runs[measure] - baseline[measure]).dropna().to_numpy(dtype=float)
    return t_interval(differences, rule.numbers.confidence), sign_flip(differences)


def _as_json(interval: Interval, p: float, adjusted: float | None = None) -> dict[str, Any]:
    return {**interval.as_json(), "p": _plain(p), **({} if adjusted is None else {"p_holm": _plain(adjusted)})}


def _words(
    rule: Rule, differences: Mapping[str, Any], runs: pandas.DataFrame, frontier: list[pandas.DataFrame]
) -> dict[str, Any]:
    """H1, H2, the change of e against ±delta, and the place against the frontier."""
    numbers = rule.numbers
    (top1, *_), (c, *_), (e, _, p) = (differences[measure] for measure in ("top1", "c", "e"))
    h1 = keeps_probe(top1, numbers.h1_margin)
    whole = all(len(group) > 1 for group in (runs, *frontier))
    gap = frontier_gap(runs, frontier, numbers.confidence) if whole else t_interval([], numbers.confidence)
    outside = whole and math.isnan(gap.mean)
    return {
        "h1": h1,
        "h2": separates(h1, e, c, p, rule),
        "change": compared(e, numbers.delta),
        "against_frontier": AGAINST[compared(gap, numbers.delta)],
        "gap": gap.as_json(),
        "note": "the frontier does not reach this arm's concept bits, or is too steep there" if outside else "",
    }


def _image_error(runs: pandas.DataFrame, baseline: pandas.DataFrame) -> dict[str, Any]:
    """The paired error over images of the probe's difference, the mean over seeds: beside, never pooled."""
    seeds = [seed for seed in runs.index if CORRECT in runs and seed in baseline.index]
    pairs = [(runs.loc[seed, CORRECT], baseline.loc[seed, CORRECT]) for seed in seeds]
    errors = [paired_image_error(*pair) for pair in pairs if all(isinstance(one, numpy.ndarray) for one in pair)]
    return {"top1": _plain(float(numpy.mean(errors))) if errors else None, "n": len(errors)}
