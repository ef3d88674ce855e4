"""params.yaml as one typed object: everything in it is checked, whatever stage asks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lib.params.evaluation import SMALLEST_TRANSFER, Knn, Linear, Memory, Transfer, Tsne
from lib.params.pretraining import Augment, Dataset, Pretraining, Shared, pretraining_params, some_of, variant_names
from lib.params.spec import PARAMS_FILE, load_yaml, not_allowed, parse, unknown_key
from lib.params.verdict import Rule, parse_rule
from lib.runtime.errors import UserError, shown

OTHERS = ("variants", "linear", "knn", "memory", "tsne", "transfer", "verdict")
FINETUNE = ("finetune_epochs", "finetune_batch_size", "finetune_lr")
JITTERS = ("brightness", "contrast", "saturation", "hue")
CROPS = ("crop_scale_min", "crop_scale_max")


@dataclass(frozen=True)
class Experiment:
    """``variants`` by name; the keys that each sets for itself are ``own``. A method's options are not yet typed."""

    dataset: Dataset
    shared: Shared
    variants: dict[str, Pretraining]
    own: dict[str, frozenset[str]]
    linear: Linear
    knn: Knn
    memory: Memory
    tsne: Tsne
    transfer: Transfer
    transfer_variants: tuple[str, ...]
    rule: Rule | None


def read_experiment(path: Path = PARAMS_FILE) -> Experiment:
    """All of params.yaml; a UserError tells the first thing wrong anywhere in it."""
    return parse_experiment(load_yaml(path))


def parse_experiment(raw: Mapping[str, Any]) -> Experiment:
    """A loaded params.yaml, typed. An option that would have no effect is refused."""
    known = {*Dataset.__dataclass_fields__, *Shared.__dataclass_fields__, *OTHERS}
    for key in raw:
        if key not in known:
            raise unknown_key(key, known)
    names = variant_names(raw)
    variants = {name: pretraining_params(raw, name) for name in names}
    shared, linear = some_of(Shared, raw), parse(Linear, raw.get("linear", {}), "linear")
    memory = parse(Memory, raw.get("memory", {}), "memory")
    measured = {"mode": linear.mode, "memory": asdict(memory), "cues": asdict(shared.augment)}
    experiment = Experiment(
        dataset=some_of(Dataset, raw),
        shared=shared,
        variants=variants,
        own={name: frozenset(raw["variants"][name]) for name in names},
        linear=linear,
        knn=parse(Knn, raw.get("knn", {}), "knn"),
        memory=memory,
        tsne=parse(Tsne, raw.get("tsne", {}), "tsne"),
        transfer=parse(Transfer, raw.get("transfer", {}), "transfer", also=("variants",)),
        transfer_variants=_transfer_variants(raw.get("transfer", {}).get("variants", []), names),
        rule=parse_rule(raw.get("verdict", {}), variants, measured),
    )
    _check(experiment)
    _check_augment(experiment, raw)
    return experiment


def _transfer_variants(names: Any, known: list[str]) -> tuple[str, ...]:
    if not isinstance(names, list) or any(name not in known for name in names) or len(set(names)) < len(names):
        allowed = f"a list, each once, of {', '.join(known)}, or [] for none"
        raise not_allowed("transfer.variants", shown(names), allowed)
    return tuple(names)


def _check(experiment: Experiment) -> None:
    dataset, tsne, linear = experiment.dataset, experiment.tsne, experiment.linear
    if experiment.transfer_variants and dataset.image_size < SMALLEST_TRANSFER:
        least = f"allowed with transfer.variants: at least {SMALLEST_TRANSFER}"
        raise UserError(f"params.yaml: image_size is {dataset.image_size}; {least}")
    if tsne.perplexity >= tsne.points:
        raise not_allowed("tsne.perplexity", f"{tsne.perplexity:.12g}", f"below tsne.points ({tsne.points})")
    if experiment.rule and linear.mode != "probe":
        raise not_allowed("linear.mode", linear.mode, "probe with a rule under verdict, which judges frozen latents")
    for key in ("images_path", "on_bad_image") if dataset.dataset != "images" else ():
        where = f"dataset {dataset.dataset}"
        require_default(key, getattr(dataset, key), getattr(Dataset, key), where, "set dataset to images")
    if 1.0 not in linear.labels:
        raise not_allowed("linear.labels", list(linear.labels), "a list with 1.0, all labels, among its shares")
    for key in FINETUNE if linear.mode != "finetune" else ():
        where, remedy = f"linear.mode {linear.mode}", "set linear.mode to finetune"
        require_default(f"linear.{key}", getattr(linear, key), getattr(Linear, key), where, remedy)


def _check_augment(experiment: Experiment, raw: Mapping[str, Any]) -> None:
    """Refuse strengths of a jitter that never comes and sizes of a crop that squares replace, shared or a variant's."""
    # fine-tuning and the study's protocol crop whatever pretraining does
    crops_later = experiment.linear.mode == "finetune" or experiment.linear.study_epochs > 0
    variants = experiment.variants
    blocks = [("", raw, list(variants.values()))]
    blocks += [(f"variants.{name}.", raw["variants"][name], [params]) for name, params in variants.items()]
    for where, block, readers in blocks:
        seconds = [reader.augment_second for reader in readers if reader.augment_second]
        if "augment_second" in block and not seconds:
            raise UserError(
                f"params.yaml: {where}augment_second has no effect: it changes nothing of augment; remove it"
            )
        both = [recipe for reader in readers for recipe in reader.recipes]
        if block is raw:  # the memory's cues are drawn from the shared block
            both.append(replace(experiment.shared.augment, crop_pixels=0))
        for key, recipes in (("augment", both), ("augment_second", seconds)):
            unread = []
            if not any(recipe.jitter > 0 for recipe in recipes):
                unread += [(name, f"{key}.jitter 0", f"set {key}.jitter above 0") for name in JITTERS]
            if not crops_later and all(recipe.crop_pixels for recipe in recipes):
                without = "augment.crop_pixels above 0 and linear.study_epochs 0"
                unread += [(name, without, "set augment.crop_pixels to 0") for name in CROPS]
            for name, without, remedy in unread:
                usual = getattr(Augment, name)
                value = float(block.get(key, {}).get(name, usual))
                require_default(f"{where}{key}.{name}", value, usual, without, remedy)


def require_default(key: str, value: Any, usual: Any, where: str, remedy: str) -> None:
    """An option that changes nothing is a slip: whoever set it to other than ``usual`` expects otherwise."""
    if value != usual:
        given = f"{value:g}" if isinstance(usual, float) else shown(value)
        unread = f"{key} is {given}, which has no effect with {where}"
        raise UserError(f"params.yaml: {unread}; {remedy}, or {key} to {usual}")
