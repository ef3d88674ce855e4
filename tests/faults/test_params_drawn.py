"""params.yaml under drawn changes: each value runs on tiny data, or is refused in one line that can be acted on."""

import copy
import dataclasses
import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
import yaml

from lib.core.loop import pretrain
from lib.core.trainer import Pretrainer, check_batch
from lib.evaluate.linear import evaluate
from lib.evaluate.monitor import knn_monitor
from lib.evaluate.tsne import embed_plane, select
from lib.methods import build_method, check_method, try_method
from lib.params.check import check_params
from lib.params.evaluation import knn_params, linear_params, tsne_params
from lib.params.pretraining import load_params, pretraining_params, variant_names
from lib.preset import apply_preset, overlay, read_preset
from lib.runtime.errors import UserError, shown
from tests.evaluate_fakes import CLASSES, about, tiny_data, tiny_method
from tests.examples import CPU, ROOT, images, study_params
from tests.faults.count import told, tried
from tests.faults.draws import Case, at, base, draw_case, places
from tests.faults.refusals import LONGEST_LINE, refused
from tests.faults.runs import EVERYTHING, VARIANTS, narrow, small_params

CASES = 1_000
RUN = 60 if EVERYTHING else 10  # of those accepted, spread evenly
EVALUATED = 10 if EVERYTHING else 3
WRITTEN = 150  # that also go through the text of a file
IMAGES = 64
HINTS = ("allowed", "; set ", "variants: ")

_tested: set[str] = set()


def all_checks(raw: dict[str, Any]) -> None:
    """What the stages check before they compute."""
    check_params(raw)
    every = [pretraining_params(raw, variant) for variant in variant_names(raw)]
    for params in every:
        check_method(params)
    check_batch(every[0], IMAGES, 1)
    for params in every:
        network = repr((params.method, params.options, params.encoder, params.image_size, params.augment.crop_pixels))
        if network not in _tested:  # builds it, without its numbers
            try_method(params)
            _tested.add(network)


def outcome(raw: dict[str, Any]) -> str | None:
    """The line in which ``raw`` is refused; None where it is accepted. Any other error is a failure."""
    try:
        all_checks(copy.deepcopy(raw))
    except UserError as error:
        return str(error)
    return None


def complaint(case: Case, line: str) -> str | None:
    """What is wrong with the line in which a case is refused."""
    if "\n" in line or not line.isprintable() or len(line) > LONGEST_LINE:
        return "not one readable line"
    if not any(hint in line for hint in HINTS):
        return "does not say what is allowed"
    names = [shown(str(place[-1])).strip("'\"")[:40] for place in case.changed]
    if not any(name in line for name in names) and not any(place[0] == "variants" for place in case.changed):
        return f"names none of {names}"
    if case.what[0].startswith("type") and case.value is not None and not isinstance(case.value, (dict, list)):
        value = shown(case.value).strip("'\"")
        real = f"{float(case.value):g}" if type(case.value) is int and abs(case.value) < 1e300 else value  # of a real
        if not any(words in line for words in (value, f"{case.value}", real)):
            return f"does not show the value {value}"
    return None


@pytest.fixture(scope="module")
def outcomes() -> list[tuple[Case, str | None]]:
    """Every drawn case and what became of it."""
    found, failures = [], []
    for number in range(CASES):
        case = draw_case(number)
        tried("inputs")
        try:
            line = outcome(case.raw)
        except Exception as error:
            failures.append(f"case {number} ({case.what}): {type(error).__name__}: {str(error)[:200]}")
            continue
        problem = None if line is None else complaint(case, line)
        if problem:
            failures.append(f"case {number} ({case.what}, {shown(case.value)}): {problem}: {line}")
        if line is not None:
            tried("refused")
            told(line)
        found.append((case, line))
    assert not failures, f"{len(failures)} of {CASES}:\n" + "\n".join(failures[:20])
    return found


def test_every_case_is_accepted_or_refused_in_one_line(outcomes):
    accepted = sum(line is None for _, line in outcomes)
    assert len(outcomes) == CASES and CASES / 10 < accepted < CASES / 2


def test_every_key_of_the_file_was_drawn_and_can_be_wrong(outcomes):
    """The keys are found by walking the file: a new one cannot be forgotten."""
    every = set(places(study_params()))
    assert len(every) > 50 and every <= {place for case, _ in outcomes for place in case.changed}
    for place in sorted(every):
        raw = base()
        at(raw, place[:-1])[place[-1]] = [[]]  # no key takes that
        tried("inputs")
        tried("refused", int(outcome(raw) is not None))
        assert outcome(raw) is not None, place


def test_the_text_of_a_file_has_the_same_outcome(outcomes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for case, line in outcomes[:: CASES // WRITTEN]:
        text = yaml.dump(case.raw, Dumper=yaml.CSafeDumper, allow_unicode=True, sort_keys=False)
        (tmp_path / "params.yaml").write_text(text)
        try:
            raw = load_params()
        except UserError as error:
            assert line is not None and "\n" not in str(error), case.what
            continue
        if repr(raw) == repr(case.raw):  # a text that looks like a number comes back as one
            assert outcome(raw) == line


def made_small(raw: dict[str, Any]) -> dict[str, Any]:
    """The sizes reduced to what trains in a moment; everything else as drawn."""
    small = copy.deepcopy(raw)
    small.update(encoder="small", batch_size=16, epochs=1, image_size=16)
    small["micro_batch_size"] = 8 if raw.get("micro_batch_size") else 0
    optimizer = small.get("optimizer", {})
    optimizer["warmup_epochs"] = min(optimizer.get("warmup_epochs", 0), 1)
    for block in small["variants"].values():
        block.pop("epochs", None)
    return narrow(small)


def trains(raw: dict[str, Any], variant: str, folder: Path) -> bool:
    """Whether one epoch ends with a finite loss; where it does not, that is told in one line."""
    keeps_nothing = SimpleNamespace(
        load=lambda: None, save=lambda state: None, finish=lambda state: None, latest=folder / "none", folder=folder
    )
    data, params = images(32), pretraining_params(raw, variant)
    torch.manual_seed(0)
    trainer = Pretrainer(build_method(params), data, params, CPU)
    try:
        pretrain(trainer, keeps_nothing, folder / "curve.csv", knn_monitor(data, params, CPU))
    except UserError as error:
        assert "\n" not in str(error) and "finite" in str(error) and "lower optimizer.lr" in str(error)
        return False
    last = trainer.position.history[-1]
    assert all(math.isfinite(last[name]) for name in ("loss", "knn", "lr"))
    return True


def test_what_is_accepted_trains_to_a_finite_loss_or_is_refused(outcomes, tmp_path):
    accepted = [made_small(case.raw) for case, line in outcomes if line is None]
    chosen = accepted[:: len(accepted) // RUN][:RUN]
    names = [variant_names(raw) for raw in chosen]
    done = [trains(raw, own[number % len(own)], tmp_path) for number, (raw, own) in enumerate(zip(chosen, names))]
    assert len(done) == RUN and sum(done) > RUN / 2


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__lr": 1e37},
        {"optimizer__lr": 1e-37},
        {"optimizer__weight_decay": 1e37},
        {"gamma": 1e37},
        {"optimizer__momentum": 0.9999},
        {"variants__joint__temperature": 1e-37},
        {"variants__joint__temperature": 1e37},
        {"augment__crop_scale_min": 1e-37, "augment__crop_scale_max": 1e-37},
        {"monitor__temperature": 1e-37},
        {"monitor__temperature": 1e37, "monitor__k": 2**31 - 1},
        {"optimizer__name": "lars", "optimizer__lr": 1e37},
        {"optimizer__name": "sgd", "optimizer__lr": 1e30, "optimizer__schedule": "cosine"},
        {"seed": 2**31 - 1},
    ],
    ids=str,
)
def test_the_largest_and_smallest_numbers_train_or_are_refused(changes, tmp_path):
    raw = made_small(base())
    raw["variants"] = {"joint": raw["variants"]["joint"]}  # others have bounds of their own
    raw = changed(raw, **changes)
    all_checks(raw)
    tried("inputs")
    tried("refused", int(not trains(raw, "joint", tmp_path)))


def test_drawn_settings_of_the_evaluation_run_or_are_refused():
    rows = numpy.random.default_rng(0).normal(size=(24, 16)).astype(numpy.float32)
    arrays = {
        "h": rows,
        "labels": numpy.arange(24) % 3,
        "indices": numpy.arange(24),
        "classes": numpy.array(CLASSES),
        "latents": numpy.array(["h"]),
    }
    done, drawn = 0, (draw_case(number, ("linear", "knn", "tsne")) for number in range(20 * EVALUATED))
    chosen = list(islice((case for case in drawn if outcome(case.raw) is None), EVALUATED))
    for case in chosen:
        raw = case.raw
        for block, name, most in (("linear", "epochs", 2), ("linear", "study_epochs", 1), ("tsne", "iterations", 250)):
            settings = raw.setdefault(block, {})
            settings[name] = min(settings.get(name, most), most)
        try:
            found = evaluate(tiny_method(), about(), tiny_data(), linear_params(raw), knn_params(raw), CPU).metrics
            latents, _ = select(arrays, tsne_params(raw))
            planes = [embed_plane(rows, tsne_params(raw)) for rows in latents.values()]
        except UserError as error:
            assert "\n" not in str(error) and "allowed" in str(error), case.what
            continue
        assert all(0 <= value <= 100 for value in found.values() if isinstance(value, float)), case.what
        assert all(numpy.isfinite(plane).all() for plane in planes), case.what
        done += 1
    assert len(chosen) == EVALUATED and done > EVALUATED / 2


def study_text() -> str:
    """The committed params.yaml with the study's settings, whatever preset it holds now."""
    return overlay((ROOT / "params.yaml").read_text(), read_preset("study", ROOT / "presets"))[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("epochs: 100\n", "epochs: 100\nepochs: 5\n"), "key 'epochs' occurs twice in line "),
        (("  lr: 0.001\n", "  lr: 0.001\n  'lr': 0.1\n"), "key 'lr' occurs twice in line "),
        (("seed: 0\n", "seed: 2024-13-45\n"), "'2024-13-45' is not the timestamp that it looks like in line "),
        (("seed: 0\n", "seed: 0\n---\nseed: 1\n"), "found another document in line "),
        (("seed: 0\n", "seed: [0\n"), "in line "),
        (("seed: 0\n", "seed:\t0\n\tlr: 1\n"), "in line "),
    ],
)
def test_a_text_that_cannot_be_meant(change, words, tmp_path):
    whole = study_text()
    text = whole.replace(*change, 1)
    assert text != whole
    (tmp_path / "params.yaml").write_text(text)
    refused(lambda: load_params(tmp_path / "params.yaml"), "params.yaml is not valid YAML: ", words)
    refused(lambda: apply_preset("demo", [], tmp_path / "params.yaml", ROOT / "presets"), words)
    assert (tmp_path / "params.yaml").read_text() == text


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("epochs=2024-13-45", "the value of epochs is '2024-13-45'; allowed: one number or text"),
        ("epochs=[1]", "epochs is [1]; allowed: a whole number"),
        ("epochs=*x", "allowed: one number or text"),
        ("epochs=1e400", "epochs is inf; allowed: a whole number at least "),
        ("epochs=", "epochs is ''; allowed"),
        ("epochs", "write key=value"),
        ("epoch=1", "params.yaml has no key epoch; keys there: "),
        ("optimizer=1", "params.yaml has no key optimizer; keys there: "),
        ("=1", "write key=value"),
        ("epochs=" + "9" * 5000, "the value of epochs is '999"),
        ("on_bad_image=skip", "no effect with dataset digits"),
    ],
)
def test_a_bad_setting_of_a_preset(setting, words, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(study_text())
    refused(lambda: apply_preset("demo", [setting], path, ROOT / "presets"), words)
    assert path.read_text() == study_text()


# Options without effect


def changed(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """``raw`` with changes; dots in keys are ``__``, a value None removes the key."""
    for name, value in changes.items():
        *above, last = name.split("__")
        block = raw
        for key in above:
            block = block[key]
        if value is None:
            del block[last]
        else:
            block[last] = value
    return raw


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants__simclr__gamma": 0.1}, "unknown key variants.simclr.gamma"),
        ({"variants__joint__gamma": 0.1}, "unknown key variants.joint.gamma"),
        ({"variants__dual__seed": 5}, "unknown key variants.dual.seed"),
        ({"variants__joint__lambda": 0.1}, "unknown key variants.joint.lambda; allowed here: "),
        ({"variants__joint__watch__gamma": 1}, "unknown key variants.joint.watch.gamma"),
        ({"variants__simclr__watch__number": "gamma"}, "variants.simclr.watch.number is 'gamma'; allowed: 'seed'"),
        ({"variants__simclr__watch__term": "view_distance"}, "variants.simclr.watch names the losses ntxent, view_"),
        (
            {"variants__joint": None, "variants__dual": None, "gamma": 0.1},
            "gamma is 0.1, which has no effect with these",
        ),
        ({"linear__finetune_lr": 0.01}, "linear.finetune_lr is 0.01, which has no effect with linear.mode probe"),
        ({"images_path": "x"}, "images_path is 'x', which has no effect with dataset cifar10"),
        ({"on_bad_image": "skip"}, "on_bad_image is 'skip', which has no effect with dataset cifar10"),
        ({"augment__jitter": 0, "augment__hue": 0.2}, "augment.hue is 0.2, which has no effect with augment.jitter 0"),
        ({"augment__jitter": 0.0, "augment__contrast": 0}, "augment.contrast is 0, which has no effect with augment."),
        (
            {"augment__crop_pixels": 8, "augment__crop_scale_min": 0.2, "linear__study_epochs": 0},
            "augment.crop_scale_min is 0.2, which has no effect with augment.crop_pixels above 0 and linear.s",
        ),
        (
            {"variants__simclr__augment": {"crop_pixels": 8, "crop_scale_max": 0.5}, "linear__study_epochs": 0},
            "variants.simclr.augment.crop_scale_max is 0.5, which has no effect with augment.crop_pixels above 0",
        ),
    ],
)
def test_an_option_without_effect_is_refused(changes, words):
    refused(lambda: all_checks(changed(study_params(), **changes)), "params.yaml: ", words)


def test_the_same_options_with_an_effect_are_taken():
    for changes in (
        {"variants__simclr": None, "gamma": 0.1},
        {"linear__mode": "finetune", "linear__finetune_lr": 0.01},
        {"dataset": "images", "images_path": "x", "on_bad_image": "skip"},
        {"augment__jitter": 0.0},
        {"augment__hue": 0.2},
        {"variants__joint": None, "variants__dual": None},
        {"augment__crop_scale_min": 0.2, "variants__simclr__augment": {"crop_pixels": 8}},
        {"augment__crop_pixels": 8, "augment__crop_scale_min": 0.2},
    ):
        check_params(changed(study_params(), **changes))


def test_every_option_of_a_method_changes_its_variant():
    """An option that a method's class has and never uses would be one without effect; one that others switch
    off is refused for that reason."""
    for name in VARIANTS:
        options = check_method(pretraining_params(small_params(batch_size=16), name))
        same = after_two_steps(small_params(batch_size=16), name)
        for option in dataclasses.fields(options):
            raw = small_params(batch_size=16)
            value = another_value(raw, name, option, getattr(options, option.name))
            if value is None:
                continue
            raw["variants"][name][option.name] = value
            assert after_two_steps(raw, name) != same, f"{name}.{option.name}"


def another_value(raw: dict[str, Any], variant: str, option: dataclasses.Field, usual: Any) -> Any:
    """An allowed value of an option other than its usual one; None if there is none, as others switch it off."""
    refusals, numbers = (
        [],
        () if isinstance(usual, str) else (2 * usual, usual / 2, usual + 1, usual + 3, usual + 2, not usual),
    )
    for value in (*(option.metadata.get("choices") or ()), *numbers):
        candidate = copy.deepcopy(raw)
        candidate["variants"][variant][option.name] = type(usual)(value)
        if type(usual)(value) == usual:
            continue
        refusals.append(outcome(candidate))
        if refusals[-1] is None:
            return type(usual)(value)
    words = ("has no effect", "augment.crop_pixels")  # or it wants squares of another size with it
    assert any(word in line for word in words for line in refusals), f"no other value of {variant}.{option.name}"
    return None


def after_two_steps(raw: dict[str, Any], variant: str) -> dict[str, Any]:
    """A digest of every number of a method that has made two steps, and of their losses."""
    raw.update(batch_size=16, dataset="digits", images_path="")
    params = pretraining_params(raw, variant)
    torch.manual_seed(0)
    trainer = Pretrainer(build_method(params), images(64), params, CPU)
    order = trainer.order(0)
    losses = [trainer.step(0, step, order[step])[0].item() for step in range(2)]
    state = {name: tensor.sum(dtype=torch.float64).item() for name, tensor in trainer.method.state_dict().items()}
    return {"losses": losses, **state}
