"""A step on another device, without having one: tensors of torch's device ``meta`` have a shape and no numbers.

An operation that mixes them with tensors of the CPU fails, as on a GPU, and so does every look at a number, for which
the host would wait.
"""

import dataclasses
from contextlib import nullcontext

import pytest
import torch

from lib.methods import build_method
from tests.examples import params_file, pretraining

FORMS = [(variant, {}) for variant in params_file()["variants"]] + [
    ("moco", {"norm_rows": 4, "shuffle": True}), ("clapp", {"asymmetric": True}), ("cmc_bank", {"form": "nce"}),
    ("kwta", {"loss": "contrast"}), ("kwta", {"training_code": "hard", "triplets": "random"}),
    ("patch_filters", {"max_pool": False})]


@pytest.mark.parametrize(("variant", "options"), FORMS, ids=lambda value: value if isinstance(value, str) else
                         " ".join(value) or "as it is")
def test_a_step_stays_on_its_device_and_asks_for_no_number(variant, options, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know meta
    params = pretraining(variant)
    params = dataclasses.replace(params, options={**params.options, **options})
    method = build_method(params)
    method.see_data(torch.zeros(3), torch.ones(3), 64, 2)
    method = method.to("meta").train()
    size = params.augment.crop_pixels or params.image_size
    views = [torch.empty(params.batch_size, 3, size, size, device="meta") for _ in range(method.views)]
    rows = torch.zeros(params.batch_size, dtype=torch.int64, device="meta")
    total, parts = method.loss({**method.embed(views), **{name: rows for name in method.needs}})
    total.backward()
    method.after_step(0, 10)
    latents = method.eval().latents(torch.empty(2, 3, params.image_size, params.image_size, device="meta"))
    found = [total, *parts.values(), *latents.values(), *method.project(latents).values(), *method.buffers()]
    assert {tensor.device.type for tensor in found} == {"meta"}
