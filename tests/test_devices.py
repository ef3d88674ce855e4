"""A step on another device, without having one: tensors of torch's device ``meta`` have a shape and no numbers.

An operation that mixes them with tensors of the CPU fails, as on a GPU, and so does every look at a number, for which
the host would wait.
"""

from contextlib import nullcontext

import pytest
import torch

from lib.methods import build_method
from lib.methods.base import DataFacts
from tests.examples import VARIANTS, pretraining


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_stays_on_its_device_and_asks_for_no_number(variant, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know meta
    params = pretraining(variant)
    method = build_method(params)
    method.setup(DataFacts(torch.zeros(3), torch.ones(3), 64, 2, params.batch_size))
    method = method.to("meta").train()
    size = params.augment.crop_pixels or params.image_size
    views = [torch.empty(params.batch_size, 3, size, size, device="meta") for _ in range(method.views)]
    rows = torch.zeros(params.batch_size, dtype=torch.int64, device="meta")
    total, parts = method.loss({**method.embed(views), **dict.fromkeys(method.needs, rows)})
    total.backward()
    method.after_step(0, 10)
    latents = method.eval().latents(torch.empty(2, 3, params.image_size, params.image_size, device="meta"))
    found = [total, *parts.values(), *latents.values(), *method.project(latents).values(), *method.buffers()]
    assert {tensor.device.type for tensor in found} == {"meta"}
