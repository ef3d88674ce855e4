"""The rule that judges the hypotheses: arms, controls, seeds and margins, fixed before the runs that it judges."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lib.params.pretraining import Pretraining
from lib.params.spec import join, not_allowed, param, parse
from lib.runtime.errors import UserError, shown

LISTS = ("hypotheses", "frontier", "landmarks")  # of names of arms
SEEDS = ("seeds", "pilot_seeds")
MOST_SEEDS = 16  # all signs of their differences are tried
ROUNDING = 1e-9


@dataclass(frozen=True)
class Numbers:
    """``h1_margin`` in points of probe top-1, ``concept_margin`` and ``delta`` in bits, ``confidence`` of two-sided
    intervals; ``assay_sd``: by how many pooled deviations the controls must differ. Three roles name an arm each."""

    baseline: str = param()
    oracle: str = param()
    supervised: str = param()
    delta: float = param(above=0)
    h1_margin: float = param(1.0, above=0)
    concept_margin: float = param(0.05, above=0)
    confidence: float = param(0.9, low=0.5, high=0.999)
    assay_sd: float = param(4.0, above=0)


@dataclass(frozen=True)
class Rule:
    """``arms``: the variants of each by name; ``numbers`` and the lists name arms by their roles.

    ``seeds`` are the confirmatory ones: all of them for the baseline and each hypothesis, two or more for other arms.
    """

    name: str
    arms: dict[str, tuple[str, ...]]
    hypotheses: tuple[str, ...]
    frontier: tuple[str, ...]
    landmarks: tuple[str, ...]
    seeds: tuple[int, ...]
    pilot_seeds: tuple[int, ...]
    numbers: Numbers
    settings: dict[str, Any]  # of each arm, and of what it is measured by

    @property
    def digest(self) -> str:
        """sha256 of all values; prefixes are spelled out, so that a further replicate is another rule, and so is
        another number that an arm trains with or is measured by."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def controls(self) -> tuple[str, str]:
        """The arm that must have more episode bits, and the one that must have fewer."""
        return self.numbers.oracle, self.numbers.supervised

    @property
    def arm_of(self) -> dict[str, str]:
        """The arm of each variant that the rule names."""
        return {variant: arm for arm, variants in self.arms.items() for variant in variants}


def parse_rule(raw: Any, variants: Mapping[str, Pretraining], measured: Mapping[str, Any]) -> Rule | None:
    """The block ``verdict`` of params.yaml: {} for no rule, or one rule by its name; ``measured``: what latents are
    measured by, as plain values.

    Refused: two rules, which would be two looks at the same runs; an arm without at least two replicates; a seed that
    is no confirmatory one; whatever names an arm that is not there.
    """
    if not isinstance(raw, Mapping) or len(raw) > 1:
        raise not_allowed("verdict", shown(raw), "{} for no rule, or one rule by its name")
    if not raw:
        return None
    name, block = next(iter(raw.items()))
    where = join("verdict", name)
    numbers = parse(Numbers, block, where, also=("arms", *LISTS, *SEEDS))
    arms = _arms(block.get("arms"), f"{where}.arms", variants)
    lists = {key: _names(block.get(key, []), f"{where}.{key}", arms) for key in LISTS}
    for key in ("baseline", "oracle", "supervised"):
        _names([getattr(numbers, key)], f"{where}.{key}", arms)
    seeds = {key: _seeds(block.get(key, []), f"{where}.{key}") for key in SEEDS}
    keys = {arm: variants[members[0]].replicate_key() for arm, members in arms.items() if members}
    rule = Rule(str(name), arms, **lists, **seeds, numbers=numbers, settings={**measured, "arms": keys})  # type: ignore[arg-type]
    _check(rule, where, variants)
    return rule


def _arms(raw: Any, where: str, variants: Mapping[str, Pretraining]) -> dict[str, tuple[str, ...]]:
    """Each arm's variants: a list of names, or what comes before the digits at the end of their names."""
    if not isinstance(raw, Mapping) or not raw:
        raise not_allowed(where, shown(raw), "a block of arms, each a list of variants or the start of their names")
    arms: dict[str, tuple[str, ...]] = {}
    for arm, members in raw.items():
        if isinstance(members, str):
            members = [name for name in variants if name.startswith(members) and name[len(members) :].isdigit()]
        arms[str(arm)] = _names(members, join(where, arm), variants)
    if len(every := [name for members in arms.values() for name in members]) > len(set(every)):
        twice = next(name for name in every if every.count(name) > 1)
        raise UserError(f"params.yaml: {twice} is in two arms of {where}; leave it in one")
    return arms


def _names(raw: Any, where: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    if not isinstance(raw, list) or any(name not in list(known) for name in raw) or len(set(raw)) < len(raw):
        raise not_allowed(where, shown(raw), f"a choice, each once, of {shown(list(known))}")
    return tuple(raw)


def _seeds(raw: Any, where: str) -> tuple[int, ...]:
    if not isinstance(raw, list) or any(type(seed) is not int for seed in raw) or len(set(raw)) < len(raw):
        raise not_allowed(where, shown(raw), "a list of whole numbers, each once")
    return tuple(raw)


def _check_roles(rule: Rule, where: str) -> None:
    """Refuse a rule that no run could satisfy."""
    numbers, count = rule.numbers, len(rule.seeds)
    if not rule.hypotheses or numbers.baseline in rule.hypotheses:
        allowed = f"one arm or more, and not the baseline {numbers.baseline}"
        raise not_allowed(f"{where}.hypotheses", shown(list(rule.hypotheses)), allowed)
    if len(rule.frontier) < 2:
        raise not_allowed(f"{where}.frontier", shown(list(rule.frontier)), "at least two arms")
    if numbers.oracle == numbers.supervised:
        raise not_allowed(f"{where}.oracle", numbers.oracle, "another arm than supervised")
    least = 2 * len(rule.hypotheses) / 2**count  # Holm's p of the clearest result
    if count > MOST_SEEDS or least > 1 - numbers.confidence + ROUNDING:
        allowed = f"at most {MOST_SEEDS}, and so many that the least p, here {least:.3g}, is within 1 - confidence"
        raise not_allowed(f"{where}.seeds", f"a list of {count}", allowed)


def _check(rule: Rule, where: str, variants: Mapping[str, Pretraining]) -> None:
    if both := sorted({*rule.seeds} & {*rule.pilot_seeds}):
        raise UserError(f"params.yaml: {where}: seed {both[0]} is a pilot's and confirmatory; take it out of one list")
    for arm, names in rule.arms.items():
        members, place = [variants[name] for name in names], f"{where}.arms.{arm}"
        seeds = [member.seed for member in members]
        if len(set(seeds)) < max(2, len(seeds)):
            raise not_allowed(place, f"of the seeds {seeds}", "at least two, each once")
        if others := [seed for seed in seeds if seed not in rule.seeds]:
            what = "a pilot's" if others[0] in rule.pilot_seeds else "none of the confirmatory"
            raise UserError(f"params.yaml: {place}: seed {others[0]} is {what} (seeds {list(rule.seeds)}); remove it")
        if arm in (rule.numbers.baseline, *rule.hypotheses) and set(seeds) != set(rule.seeds):
            raise not_allowed(place, f"of the seeds {seeds}", f"all of {list(rule.seeds)}, for it is compared by seed")
        if unlike := [member for member in members if member.replicate_key() != members[0].replicate_key()]:
            raise UserError(f"params.yaml: {place}: {unlike[0].variant} and {names[0]} differ in more than their seed")
    _check_roles(rule, where)
