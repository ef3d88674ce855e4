"""What holds for every method and every form of it: one suite over all of lib/methods."""

import io
import json
from dataclasses import replace

import pytest
import torch

from lib.methods import build_method, method_class, try_method, typed_options
from tests.examples import VARIANTS, Training, built, embedded, pretraining, views

pytestmark = pytest.mark.parametrize("variant", VARIANTS)


def test_every_learning_parameter_gets_a_gradient_and_no_other(variant):
    """In the first half of a training or in the second, where layers learn one after the other."""
    method = built(variant)
    for step in (1, 2):
        embeddings = embedded(method)
        assert all(len(values) == 8 and values.isfinite().all() for values in embeddings.values())
        total, parts = method.loss(embeddings)
        total.backward()
        assert total.ndim == 0 and total.isfinite() and total.dtype == torch.float32
        assert parts and all(part.ndim == 0 for part in parts.values())
        method.after_step(step, 4)
    for name, weight in method.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name


def test_a_loss_computes_in_fp32_whatever_the_callers_autocast(variant):
    def errors(kind: torch.dtype, autocast: bool) -> list[torch.Tensor]:
        method = built(variant)
        embeddings = embedded(method)
        for name, values in embeddings.items():
            if values.is_floating_point():  # the same numbers in each type: those that are whole in all of them
                embeddings[name] = values.detach().half().bfloat16().to(kind)
        torch.manual_seed(0)  # of negatives that are drawn
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total, parts = method.loss(embeddings)
        return [total, *parts.values()]

    expected = errors(torch.float32, autocast=False)
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        torch.testing.assert_close(errors(kind, autocast=True), expected, rtol=0, atol=0)


def test_all_that_a_step_changes_is_in_the_state(variant):
    """Stopped after four steps of six: in a method of other weights the last two lead to the same bits."""
    training, file = Training(built(variant), steps=6), io.BytesIO()
    for _ in range(4):
        training.step()
    torch.save([training.method.state_dict(), training.optimizer.state_dict()], file)
    file.seek(0)
    again = Training(built(variant, seed=1), steps=6, done=4)
    for module, state in zip((again.method, again.optimizer), torch.load(file, weights_only=True)):
        module.load_state_dict(state)
    for _ in range(2):
        training.step(), again.step()
    torch.testing.assert_close(again.method.state_dict(), training.method.state_dict(), rtol=0, atol=0)


def test_latents_are_one_row_per_image_and_the_same_from_a_state(variant):
    """In a method without `setup`, as a file is loaded: what the data gave it has its size from the state."""
    method, fresh, images = built(variant).eval(), built(variant, seed=1, images=0).eval(), views(5)[0]
    fresh.load_state_dict(method.state_dict())
    with torch.no_grad():
        latents = method.latents(images)
        torch.testing.assert_close(fresh.latents(images), latents, rtol=0, atol=0)
    for rows in (*latents.values(), *method.project(latents).values()):
        assert len(rows) == 5 and rows.ndim == 2 and rows.dtype == torch.float32 and rows.isfinite().all()
    assert method.encoder.name and method.encoder.width > 0 and json.dumps(method.encoder.about())


def test_a_variant_is_tried_without_what_it_does_not_read_and_labels_are_for_supervised_ones_alone(variant):
    params = pretraining(variant)
    reads = method_class(params.method).reads(typed_options(params))
    assert reads <= {"encoder", "gamma"}
    unread = {name: None for name in ("encoder", "gamma") if name not in reads}
    try_method(replace(params, **unread), images=64, classes=2)
    try_method(replace(params, epochs=0, batch_size=256, **unread), images=64, classes=2)
    assert ("labels" in build_method(params).needs) == ("supervised" in variant or variant == "in_class")
