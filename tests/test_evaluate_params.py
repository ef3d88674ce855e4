"""Settings of the evaluation that cannot work together are refused before anything runs."""

import pytest
from lib.params.check import check_params

from lib.runtime.errors import UserError
from tests.examples import study_params


def changed(**blocks) -> dict:
    raw = study_params()
    for name, value in blocks.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) else value
    return raw


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({"tsne": {"points": 30}}, "params.yaml: tsne.perplexity is 30; allowed: below tsne.points (30)"),
        (
            {"linear": {"finetune_lr": 0.01}},
            "params.yaml: linear.finetune_lr is 0.01, which has no effect with linear.mode "
            "probe; set linear.mode to finetune, or linear.finetune_lr to 0.0001",
        ),
        (
            {"images_path": "x.zip"},
            "params.yaml: images_path is 'x.zip', which has no effect with dataset cifar10; "
            'set dataset to images, or images_path to ""',
        ),
    ],
)
def test_what_has_no_effect_or_cannot_work_is_refused_in_one_line(blocks, words):
    with pytest.raises(UserError) as refusal:
        check_params(changed(**blocks))
    assert str(refusal.value) == words


def test_the_same_settings_with_an_effect_are_taken():
    check_params(changed(tsne={"points": 31}))
    check_params(changed(linear={"finetune_lr": 0.01, "mode": "finetune"}))
    check_params(changed(images_path="x.zip", dataset="images"))
