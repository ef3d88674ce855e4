"""Settings of the evaluation that cannot work together are refused before anything runs."""

import pytest

from lib.params.experiment import parse_experiment
from lib.runtime.errors import UserError
from tests.examples import raw_params


def unread(key: str, value, default) -> str:
    where = f"params.yaml: linear.{key} is {value}, which has no effect with linear.mode probe"
    return f"{where}; set linear.mode to finetune, or linear.{key} to {default}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tsne__points": 30}, "params.yaml: tsne.perplexity is 30; allowed: below tsne.points (30)"),
        ({"linear__finetune_lr": 0.01}, unread("finetune_lr", 0.01, 0.0001)),
        ({"linear__finetune_epochs": 3}, unread("finetune_epochs", 3, 50)),
        ({"linear__finetune_batch_size": 8}, unread("finetune_batch_size", 8, 256)),
        ({"linear__epochs": 50}, "params.yaml: unknown key linear.epochs"),
        (
            {"transfer__variants": ["nobody"]},
            "params.yaml: transfer.variants is ['nobody']; allowed: a list, each once",
        ),
        ({"transfer__variants": ["simclr", "simclr"]}, "params.yaml: transfer.variants is ['simclr', 'simclr']"),
        ({"transfer__variants": "simclr"}, "params.yaml: transfer.variants is 'simclr'"),
        (
            {"transfer__variants": ["patch_filters"], "image_size": 15},
            "params.yaml: image_size is 15; allowed with transfer.variants: at least 16",
        ),
    ],
)
def test_what_has_no_effect_or_cannot_work_is_refused_in_one_line(changes, words):
    with pytest.raises(UserError) as refusal:
        parse_experiment(raw_params(**{"tsne__points": 100, "tsne__perplexity": 30.0, **changes}))
    assert str(refusal.value).startswith(words) and "\n" not in str(refusal.value)


def test_the_same_settings_with_an_effect_are_taken():
    finetuning = {"linear__finetune_lr": 0.01, "linear__finetune_epochs": 3, "linear__finetune_batch_size": 8}
    found = parse_experiment(
        raw_params(linear__mode="finetune", **finetuning, tsne__points=31, tsne__perplexity=30.0, image_size=16)
    )
    assert found.linear.finetune_epochs == 3 and found.linear.finetune_batch_size == 8 and found.tsne.points == 31
