"""What holds for every method and every form of it: one suite over all of lib/methods."""

import io
import json
from dataclasses import replace

import pytest
import torch

from lib.methods import build_method, method_class, method_names, try_method, typed_options
from tests.examples import VARIANTS, built, embedded, optimizer_of, pretraining, train, views


def test_every_method_has_a_variant():
    assert {block["method"] for block in VARIANTS.values()} == set(method_names())


@pytest.mark.parametrize("variant", VARIANTS)
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


@pytest.mark.parametrize("variant", VARIANTS)
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_latents_and_projections_are_one_row_per_image(variant):
    method = built(variant).eval()
    latents = method.latents(views(5)[0])
    for rows in (*latents.values(), *method.project(latents).values()):
        assert len(rows) == 5 and rows.ndim == 2 and rows.dtype == torch.float32 and rows.isfinite().all()
    assert method.encoder.name and method.encoder.width > 0 and json.dumps(method.encoder.about())


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_that_a_step_changes_is_in_the_state(variant):
    """Stopped after four steps of six: in a method of other weights the last two lead to the same bits."""
    method, file = built(variant), io.BytesIO()
    optimizer = optimizer_of(method)
    train(method, optimizer, range(4))
    torch.save([method.state_dict(), optimizer.state_dict()], file)
    train(method, optimizer, range(4, 6))
    file.seek(0)
    again = built(variant, seed=1)
    other = optimizer_of(again)
    for module, state in zip((again, other), torch.load(file, weights_only=True)):
        module.load_state_dict(state)
    train(again, other, range(4, 6))
    torch.testing.assert_close(again.state_dict(), method.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_makes_the_same_method_of_a_fresh_one(variant):
    """Without `setup`, as a file is loaded: buffers and layers whose size the data gave have it from the state."""
    method = built(variant).eval()
    fresh = build_method(pretraining(variant)).eval()
    fresh.load_state_dict(method.state_dict())
    images = views(3)[0]
    with torch.no_grad():
        torch.testing.assert_close(fresh.latents(images), method.latents(images), rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_tried_without_what_it_does_not_read(variant):
    params = pretraining(variant)
    reads = method_class(params.method).reads(typed_options(params))
    assert reads <= {"encoder", "gamma"}
    unread = {name: None for name in ("encoder", "gamma") if name not in reads}
    try_method(replace(params, **unread), images=64, classes=2)
    try_method(replace(params, epochs=0, batch_size=256, **unread), images=64, classes=2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_are_for_supervised_methods_alone(variant):
    assert ("labels" in built(variant).needs) == ("supervised" in variant)
