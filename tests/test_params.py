"""params.yaml becomes one typed object, or is refused in one line that names the key, the value and what is allowed."""

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from lib.params.evaluation import Knn, Linear, Memory, Transfer, Tsne
from lib.params.experiment import Experiment, parse_experiment, read_experiment
from lib.params.pretraining import Augment, Dataset, Optimizer, Pretraining
from lib.params.spec import Loader, load_yaml
from tests.faults.refusals import refused


def parsed(**changes: Any) -> Experiment:
    """Of a file with two variants; dots in keys are ``__``."""
    raw: dict[str, Any] = {"variants": {"simclr": {"method": "simclr"}, "joint": {"method": "simclr", "term": "pull"}}}
    for name, value in changes.items():
        *above, last = name.split("__")
        block = raw
        for key in above:
            block = block.setdefault(key, {})
        block[last] = value
    return parse_experiment(raw)


def variant(**own: Any) -> Pretraining:
    return parse_experiment({"variants": {"toy": {"method": "vicreg", **own}}}).variants["toy"]


def test_a_file_with_one_variant_alone_is_the_study():
    experiment = parse_experiment({"variants": {"vicreg": {"method": "vicreg"}}})
    assert experiment.dataset == Dataset() and experiment.dataset.dataset == "cifar10"
    assert (experiment.linear, experiment.knn, experiment.tsne) == (Linear(), Knn(), Tsne())
    assert experiment.memory == Memory(draws=4)
    assert (experiment.transfer, experiment.transfer_variants) == (Transfer(), ())
    vicreg = experiment.variants["vicreg"]
    assert (vicreg.encoder, vicreg.batch_size, vicreg.epochs, vicreg.gamma) == ("resnet50", 256, 100, 0.01)
    assert vicreg.optimizer == Optimizer("adam", lr=1e-3, weight_decay=1e-6, schedule="constant")


def test_a_variants_own_numbers_and_blocks_lie_over_the_shared_ones():
    shared = {"seed": 3, "gamma": 0.02, "optimizer": {"name": "sgd", "lr": 0.5}}
    experiment = parsed(**shared, variants__joint__seed=5, variants__joint__optimizer={"lr": 0.1, "momentum": 0.0})
    simclr, joint = experiment.variants.values()
    assert (simclr.seed, simclr.gamma, joint.seed, joint.gamma) == (3, 0.02, 5, 0.02)
    assert (simclr.options, joint.options) == ({}, {"term": "pull"})
    assert simclr.optimizer == Optimizer("sgd", lr=0.5) and joint.optimizer == Optimizer("sgd", lr=0.1, momentum=0.0)
    assert experiment.own["joint"] == {"method", "term", "seed", "optimizer"} and experiment.shared.seed == 3
    assert variant(augment={"flip": 0.0}).augment == Augment(flip=0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": "256"}, "batch_size is '256'; allowed: a whole number at least 2"),
        ({"epochs": 2**40}, "epochs is 1099511627776; allowed: a whole number at least 0 (and at most 2,147,483,647)"),
        ({"optimizer__lr": 1e300}, "optimizer.lr is 1e+300; allowed: a number above 0 (of a size from 1e-37 to 1e+37)"),
        ({"dataset": "cifar"}, "dataset is 'cifar'; allowed: 'cifar10', "),
        ({"encoder": "resnet51"}, "encoder is 'resnet51' (did you mean resnet50?); allowed: "),
        ({"variants__joint__method": "simcl"}, "variants.joint.method is 'simcl' (did you mean simclr?); allowed: "),
        ({"variants__joint__optimizer": {"lr": 0}}, "variants.joint.optimizer.lr is 0; allowed: a number above 0"),
        ({"variants__joint": {}}, "variants.joint is {}; allowed: a block with at least a method"),
        ({"variants": {}}, "variants is {}; allowed: a block with at least one variant"),
        ({"optimizer": 3}, "optimizer is 3; allowed: a block of keys and values (lr, momentum, name, "),
        ({"micro_batch_size": 1}, "micro_batch_size is 1; allowed: 0 (the whole batch at once) or at least 2"),
        ({"augment__crop_scale_max": 0.01}, "augment.crop_scale_min is 0.08; allowed: at most augment.crop_scale_max"),
        ({"variants__joint__augment": {"crop_pixels": 40}}, "augment.crop_pixels of joint is 40; allowed: at most "),
        ({"optimizer__warmup_epochs": 101}, "optimizer.warmup_epochs is 101.0; allowed: at most epochs (100)"),
        ({"tsne__perplexity": 5000}, "tsne.perplexity is 5000; allowed: below tsne.points (5000)"),
        ({"transfer__variants": ["dual"]}, "transfer.variants is ['dual']; allowed: a list, each once, of simclr, joi"),
        ({"transfer__variants": ["simclr"] * 2}, "transfer.variants is ['simclr', 'simclr']"),
        ({"transfer__variants": "simclr"}, "transfer.variants is 'simclr'"),
        ({"transfer__variants": ["joint"], "image_size": 15}, "image_size is 15; allowed with transfer.variants: at l"),
        ({"gama": 0.1}, "unknown key gama (did you mean gamma?); allowed here: augment, "),
        ({"transfer__variant": []}, "unknown key transfer.variant (did you mean variants?)"),
        (
            {"augment_second": {"crop_scale_min": 1.0, "crop_scale_max": 0.5}},
            "augment_second.crop_scale_min is 1.0; all",
        ),
        ({"augment_second__crop_pixels": 8}, "augment_second.crop_pixels is 8; allowed: that of augment (0), because "),
    ],
    ids=str,
)
def test_a_bad_value_or_key_is_refused(changes, words):
    assert refused(lambda: parsed(**changes)).startswith(f"params.yaml: {words}")


@pytest.mark.parametrize("name", ["", "a b", "a'b", 'a"b', "a;b", "$(a)", "1a", "_a", "-a", "a.b", "a\n", "x" * 51])
def test_a_variants_name_is_a_word(name):
    refused(lambda: parse_experiment({"variants": {name: {"method": "simclr"}}}), "is not a usable name; allowed: ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("2048", "variants.2048 is not a usable name; allowed: a letter, then"),  # quotes would not help
        ("'2048'", "variants.2048 is not a usable name; allowed: a letter, then"),
        ("1.5", "variants.1.5 is not a usable name; allowed: a letter, then"),
        ("2026-01-01", "variants.2026-01-01 is not a usable name; allowed: a letter, then"),
        ("no", "variants.False is not a usable name; allowed: text, so put it in quotes"),
        ("null", "variants.None is not a usable name; allowed: text, so put it in quotes"),
    ],
)
def test_a_name_that_yaml_reads_as_another_value(name, words, tmp_path):
    (tmp_path / "params.yaml").write_text(f"variants:\n  {name}: {{method: simclr}}\n")
    assert refused(lambda: read_experiment(tmp_path / "params.yaml")).startswith(f"params.yaml: {words}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images_path": "x"}, "images_path is 'x', which has no effect with dataset cifar10; set dataset to images"),
        ({"on_bad_image": "skip"}, "on_bad_image is 'skip', which has no effect with dataset cifar10"),
        (
            {"linear__finetune_lr": 0.01},
            "linear.finetune_lr is 0.01, which has no effect with linear.mode probe; set linear.mode to finetune, or "
            "linear.finetune_lr to 0.0001",
        ),
        ({"linear__finetune_epochs": 3}, "linear.finetune_epochs is 3, which has no effect with linear.mode probe"),
        ({"linear__finetune_batch_size": 8}, "linear.finetune_batch_size is 8, which has no effect"),
        ({"optimizer__trust": 0.02}, "optimizer.trust is 0.02, which has no effect with adam; set optimizer.name to l"),
        ({"augment": {"jitter": 0, "hue": 0.2}}, "augment.hue is 0.2, which has no effect with augment.jitter 0"),
        (
            {"variants__joint__augment": {"crop_pixels": 8, "crop_scale_min": 0.2}, "linear__study_epochs": 0},
            "variants.joint.augment.crop_scale_min is 0.2, which has no effect with augment.crop_pixels above 0 and li",
        ),
        (
            {"variants__joint__augment": {"jitter": 0.0, "contrast": 0}},
            "variants.joint.augment.contrast is 0, which has no effect with augment.jitter 0",
        ),
        ({"augment_second": {"flip": 0.5}}, "augment_second has no effect: it changes nothing of augment; remove it"),
        (
            {"variants__joint__augment_second": {}},
            "variants.joint.augment_second has no effect: it changes nothing of ",
        ),
        (
            {"augment_second": {"jitter": 0, "hue": 0.2}},
            "augment_second.hue is 0.2, which has no effect with augment_second.jitter 0; set augment_second.jitter ab",
        ),
    ],
    ids=str,
)
def test_an_option_without_effect_is_refused(changes, words):
    refused(lambda: parsed(**changes), f"params.yaml: {words}")


def test_the_same_options_with_an_effect_are_taken():
    assert parsed(dataset="images", images_path="x", on_bad_image="skip").dataset.images_path == "x"
    assert parsed(linear={"mode": "finetune", "finetune_lr": 0.01}).linear.finetune_lr == 0.01
    assert parsed(optimizer={"name": "lars", "trust": 0.02}).shared.optimizer.trust == 0.02
    assert parsed(augment__hue=0.2, variants__joint__augment={"jitter": 0.0}).variants["simclr"].augment.hue == 0.2
    assert parsed(augment={"crop_pixels": 8, "crop_scale_min": 0.2}).shared.augment.crop_scale_min == 0.2


# A variant's JSON


def test_a_variants_json_comes_back_as_it_was_without_what_it_does_not_read():
    unread = replace(variant(), encoder=None, gamma=None)
    trained = variant(seed=4, variance=2.0, optimizer={"name": "lars", "lr": 0.3})
    for params in (variant(), variant(epochs=0), trained, unread):
        assert Pretraining.from_json(json.loads(json.dumps(params.as_json()))) == params
    full, untrained = variant().as_json(), variant(epochs=0).as_json()
    assert full.keys() == set(Pretraining.__dataclass_fields__) - {"augment_second", "rule"}
    assert unread.as_json().keys() == full.keys() - {"encoder", "gamma"}
    assert untrained.keys() == full.keys() - {"batch_size", "micro_batch_size", "optimizer"}
    assert untrained == variant(epochs=0, batch_size=64, optimizer={"lr": 0.1}).as_json()


def test_the_second_views_recipe_lies_over_the_first_ones_and_is_in_the_json_where_it_differs():
    byol = {"jitter": 0.8, "saturation": 0.2}  # solo-learn's for CIFAR
    own = variant(augment=byol, augment_second={"solarize": 0.2})
    assert own.recipes == (Augment(saturation=0.2), Augment(saturation=0.2, solarize=0.2))
    assert own.as_json()["augment_second"] == {**own.as_json()["augment"], "solarize": 0.2}
    assert Pretraining.from_json(json.loads(json.dumps(own.as_json()))) == own
    shared = parsed(augment_second={"solarize": 0.2, "flip": 0.0}, variants__joint__augment_second={"flip": 1.0})
    simclr, joint = (params.augment_second for params in shared.variants.values())
    assert (simclr, joint) == (Augment(solarize=0.2, flip=0.0), Augment(solarize=0.2, flip=1.0))
    assert variant().recipes == (Augment(), Augment()) and "augment_second" not in variant().as_json()


def test_replicates_differ_in_their_seed_and_name_alone():
    experiment = parsed(variants__joint_2={"method": "simclr", "term": "pull", "seed": 2})
    simclr, joint, again = (params.replicate_key() for params in experiment.variants.values())
    assert joint == again != simclr
    assert variant(gamma=0.1).replicate_key() != variant(gamma=0.2).replicate_key()
    assert variant(optimizer={"lr": 0.1}).replicate_key() != variant().replicate_key()


# The text of the file


def test_a_number_in_scientific_form_is_a_number(tmp_path):
    assert yaml.safe_load("1e-4") == "1e-4"  # what PyYAML makes of it alone
    numbers = yaml.load("a: 1e-4\nb: 1E5\nc: -.5e-3\nd: 1.e2\n", Loader=Loader)
    assert numbers == {"a": 1e-4, "b": 1e5, "c": -5e-4, "d": 100.0}
    (tmp_path / "params.yaml").write_text("optimizer: {lr: 3e-4}\nvariants: {vicreg: {method: vicreg}}\n")
    assert read_experiment(tmp_path / "params.yaml").variants["vicreg"].optimizer.lr == 3e-4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.system ['touch owned']", "could not determine a constructor for the tag"),
        ("a: [1, 2", "is not valid YAML: expected ',' or ']'"),
        ("a: 1\nb: 2\na: 3", "is not valid YAML: key 'a' occurs twice in line 3, column 1; mend that place"),
        ("a: &x {b: 1}\nc: {<<: *x}", "key '<<' is not understood in line 2"),
        ("seed: 2024-13-45", "'2024-13-45' is not the timestamp it looks like in line 1, column 7"),
        (f"seed: {'9' * 5000}", "is not the int it looks like"),
        ("a: " + "[" * 600, "nested too deep"),
        ('a: "\\UFFFFFFFF"', "is not valid YAML"),
        ("a: 1\n---\na: 2", "found another document"),
        (b"a: \xff", "is not valid YAML: unacceptable character #x00ff"),
        ("- 1", "must hold keys and values; it holds list"),
    ],
)
def test_a_text_that_cannot_be_meant_is_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(lambda: load_yaml(path), "params.yaml", words)
    assert not (tmp_path / "owned").exists()


def test_a_file_that_is_not_there_or_empty_is_told(tmp_path):
    refused(lambda: load_yaml(tmp_path / "params.yaml"), "params.yaml: No such file or directory; run from the repo")
    (tmp_path / "machine.yaml").write_text("# nothing set\n")
    assert load_yaml(tmp_path / "machine.yaml", may_be_empty=True) == {}
