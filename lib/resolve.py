"""From params.yaml to one JSON for each variant: everything that its training reads, and nothing else.

A stage of DVC's that depends on its variant's JSON reruns when a number that the variant reads changes, and only then.
The JSON also holds the digest of each file of lib/methods and lib/encoders that the variant runs, so that an edited
method trains its own variants again and no others.
"""

import ast
import hashlib
import json
import shutil
from collections.abc import Collection
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from lib.core.trainer import check_batch
from lib.methods import method_class, try_method, typed_options
from lib.params.evaluation import FILTERS_ENCODER
from lib.params.experiment import Experiment, read_experiment, require_default
from lib.params.pretraining import UNTRAINED, Pretraining, Shared
from lib.runtime.dvc import cached, locked_stages
from lib.runtime.errors import UserError
from lib.runtime.files import make_folder, read_json, write_json, writing

VARIANTS = Path("data/variants")
ROOT = Path(__file__).parents[1]
OWN_CODE = ("lib/methods", "lib/encoders")  # digested for each variant; dvc.yaml names the rest of the code by folder

BY_VARIANT = ("pretrain", "linear", "memory", "embed", "tsne", "transfer")  # stages that a variant has for itself
# of nothing but their outputs
FOLDERS = tuple(f"data/{name}" for name in ("encoders", "memory", "scores", "embeddings", "tsne"))
FOLDERS += ("plots/curves",)


def resolve(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Every variant's JSON by name; refused: an option that a method does not have, or one that changes nothing."""
    variants = {name: resolve_variant(experiment, name) for name in experiment.variants}
    seconds = [params.augment_second for params in experiment.variants.values()]
    if any(seconds) and not any("augment_second" in stored for stored in variants.values()):
        raise UserError("params.yaml: augment_second has no effect: no variant has a second view; remove it")
    if not any("gamma" in stored for stored in variants.values()):
        require_default("gamma", experiment.shared.gamma, Shared().gamma, "these variants", "give a variant a term")
    return variants


def resolve_variant(experiment: Experiment, name: str) -> dict[str, Any]:
    """One variant's JSON: its parameters, its method's options spelled out, without the shared numbers that it does
    not read, and the digests of its own code."""
    params = experiment.variants[name]
    kind, options = method_class(params.method), typed_options(params)
    unread = {key for key in ("encoder", "gamma") if key not in kind.reads(options)}
    if not params.epochs:
        unread |= {*UNTRAINED, "gamma", "augment_second"}
    elif params.augment_second and try_method(params).views < 2:
        unread.add("augment_second")
    if without_effect := sorted(unread & experiment.own[name]):
        reader = f"the method {params.method} with these options{'' if params.epochs else ' and 0 epochs'}"
        where = f"variants.{name}.{without_effect[0]}"
        raise UserError(f"params.yaml: {where} has no effect: {reader} does not read it; remove it")
    left_out: dict[str, Any] = {key: None for key in ("encoder", "gamma", "augment_second") if key in unread}
    # a run carries the rule that will judge it: a rule that was changed since cannot have been fitted to it
    rule = experiment.rule.digest if experiment.rule and name in experiment.rule.arm_of else None
    stored = replace(params, options=asdict(options), rule=rule, **left_out).as_json()
    return {**stored, "code": code_digests(params if "encoder" in stored else replace(params, encoder=None))}


def code_digests(params: Pretraining) -> dict[str, str]:
    """sha256 of the variant's method, its encoder, and what they import of `OWN_CODE`, by path."""
    waiting = [f"lib/methods/{params.method}.py", "lib/methods/__init__.py"]
    waiting += [f"lib/encoders/{params.encoder}.py"] if params.encoder else []
    digests: dict[str, str] = {}
    while waiting:
        if (path := waiting.pop()) not in digests:
            digests[path], imported = _digest_and_imports(path)
            waiting += imported
    return dict(sorted(digests.items()))


@cache
def _digest_and_imports(path: str) -> tuple[str, list[str]]:
    """A file's sha256, and the files of `OWN_CODE` that it names in any import statement."""
    content = (ROOT / path).read_bytes()
    names: set[str] = set()
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    paths = {name.replace(".", "/") + end for name in names for end in (".py", "/__init__.py")}
    own = sorted(path for path in paths if path.startswith(OWN_CODE) and (ROOT / path).is_file())
    return hashlib.sha256(content).hexdigest(), own


def check_against_data(experiment: Experiment, about: dict[str, Any], processes: int = 1) -> None:
    """Hold the numbers of all stages against the data, whose record is ``about``, before any has spent hours.

    A UserError tells all that does not fit, in one list.
    """
    counts, classes = about["counts"], len(about["classes"])
    fitting, problems = counts["train"] - counts["validation"], []
    if (k := experiment.knn.k) > fitting and classes:
        problems.append(f"knn.k is {k}; allowed: at most {fitting}, the images that it is chosen on")
    if (source := experiment.transfer.source) and not Path(source).is_file():
        problems.append(f"transfer.source is {source}, where no file is; allowed: a file that the stage transfer wrote")
    if max(counts["per_class"]["test"]) < 2:
        problems.append("every class has one test image at most; allowed: a class with two, which a memory tells apart")
    share = min(experiment.linear.labels)
    if share < 1 and (most := max(counts["per_class"]["train"])) * share < 1.5:  # of which one is for the strength
        problems.append(f"linear.labels has {share:.4g}; allowed: at least {1.5 / most:.2g}, two images of a class")
    points = min(experiment.tsne.points, counts["test"] + (0 if classes else counts["train"]))
    if (perplexity := experiment.tsne.perplexity) >= points:
        problems.append(
            f"tsne.perplexity is {perplexity:g}; allowed: below {points}, the {'test ' * bool(classes)}images drawn"
        )
    if not classes:
        needy = {
            "transfer.variants": experiment.transfer_variants,
            "verdict": experiment.rule,
            "linear.labels": share < 1,
        }
        problems += [f"{key} needs labels, which the images have not: leave it out" for key in needy if needy[key]]
    for params in experiment.variants.values():
        try:
            method = try_method(params, counts["train"] if params.epochs else 0, fitting, classes or 1, processes)
            if "labels" in method.needs and not classes:
                why = "its loss needs labels, which the images have not; remove it, or give them labels"
                problems.append(f"variants.{params.variant}: {why} (docs/own-pictures.md)")
                continue
            check_batch(params, fitting if "labels" in method.needs else counts["train"], processes)
            if params.variant in experiment.transfer_variants and method.encoder.name != FILTERS_ENCODER:
                problems.append(
                    f"transfer.variants names {params.variant}, whose encoder is {method.encoder.name}; allowed: "
                    f"variants with the encoder {FILTERS_ENCODER}"
                )
        except UserError as error:
            problems.append(str(error).removeprefix("params.yaml: "))
    if problems:
        data = f"{about['dataset']}: {counts['train']} training and {counts['test']} test images"
        raise UserError(f"params.yaml does not fit the data ({data}): {'; also '.join(problems)}")


def write_variants(variants: dict[str, dict[str, Any]], folder: Path = VARIANTS) -> None:
    make_folder(folder)
    for name, stored in variants.items():
        write_json(folder / f"{name}.json", stored)


def read_variant(variant: str, folder: Path = VARIANTS) -> dict[str, Any]:
    """One variant's JSON as the stage `resolve` wrote it, for `Pretraining.from_json`.

    A UserError says that there is none, or that params.yaml or the variant's code has changed since.
    """
    experiment = read_experiment()
    if variant not in experiment.variants:
        raise UserError(f"params.yaml has no variant {variant}; variants: {', '.join(experiment.variants)}")
    path, current = folder / f"{variant}.json", resolve_variant(experiment, variant)
    if not path.is_file() or read_json(path) != json.loads(json.dumps(current)):
        raise UserError(f"{path} is older than params.yaml or the code; run dvc repro resolve, or dvc repro without -s")
    return current


def remove_left_overs(variants: Collection[str], root: Path = Path()) -> list[str]:
    """Remove what the stages left of variants that params.yaml no longer has; returns the paths.

    Without this the folders that `results` reads would differ between the place where a variant was renamed and a
    fresh clone. Only what a stage wrote goes: what dvc.lock names, what is in `VARIANTS`, an output as a whole, and of
    `FOLDERS` what DVC's cache holds. Other files beside them are the user's.
    """
    paths = {path for path in (root / VARIANTS).glob("[!.]*") if _stem(path) not in variants}
    for stage, entry in locked_stages(root).items():
        name, _, variant = stage.partition("@")
        if name in BY_VARIANT and variant not in variants:
            paths |= {root / out["path"] for out in entry.get("outs", [])}
    others = {path for folder in FOLDERS for path in (root / folder).glob("[!.]*") if _stem(path) not in variants}
    paths |= cached({path for path in others - paths if path.is_file()}, root)
    removed = sorted(path for path in paths if path.exists() and path.resolve().is_relative_to(root.resolve()))
    for path in removed:
        with writing(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return [path.relative_to(root).as_posix() for path in removed]


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]
