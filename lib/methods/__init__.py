"""Self-supervised methods, one file each: the modules, which views they want, which losses they use.

A method's name in params.yaml is the name of its file, and the file defines ``METHOD``, a subclass of
``lib.methods.base.Method``. Nothing else knows it by name.
"""

from importlib import import_module
from typing import Any

import torch

from lib.methods.base import Method
from lib.params.pretraining import Pretraining
from lib.params.spec import parse
from lib.runtime.errors import UserError


def method_class(name: str) -> type[Method]:
    """The class that ``lib/methods/<name>.py`` defines."""
    return import_module(f"lib.methods.{name}").METHOD


def check_method(params: Pretraining) -> Any:
    """The variant's options, typed by its method.

    Raises:
        UserError: options that the method does not have, or a watch block that does not fit its code.
    """
    kind = method_class(params.method)
    where, watch = f"variants.{params.variant}", params.watch
    if {watch.loss, watch.term} != set(kind.losses):
        raise UserError(
            f"params.yaml: {where}.watch names the losses {watch.loss}, {watch.term}; "
            f"allowed: those that lib/methods/{params.method}.py uses, {', '.join(kind.losses)}"
        )
    if watch.part != kind.part:
        raise UserError(
            f"params.yaml: {where}.watch.part is {watch.part!r}; allowed: {kind.part!r}, "
            f"the further file that lib/methods/{params.method}.py uses"
        )
    number = "gamma" if kind.reads_gamma else "seed"
    if watch.number != number:
        raise UserError(
            f"params.yaml: {where}.watch.number is {watch.number!r}; allowed: {number!r}, "
            f"the shared number that lib/methods/{params.method}.py reads"
        )
    return parse(kind.Options, params.options, where)


def try_method(params: Pretraining, images: int = 0, classes: int = 0, processes: int = 1) -> None:
    """Check a variant whole without computing anything: its options, and that its latents fit images and views.

    With ``images``, the number of training images, also whether the options fit to so many, of ``classes`` classes,
    and to a batch that is shared by ``processes``.

    Raises:
        UserError: what `check_method`, ``setup`` or ``check_local_batch`` refuses, or a size that the method cannot work
            with.
    """
    with torch.device("meta"), torch.no_grad():
        method = build_method(params).eval()
        method.latents(torch.empty(1, 3, params.image_size, params.image_size))
        if square := params.augment.crop_pixels:
            try:
                method.latents(torch.empty(1, 3, square, square))
            except (UserError, RuntimeError):
                raise UserError(
                    f"params.yaml: augment.crop_pixels of {params.variant} is {square}, which its network "
                    "cannot take; allowed: 0 (no squares), or a size that would do as image_size"
                ) from None
    if images:
        method.setup(torch.zeros(3), torch.ones(3), images, classes)
        method.check_local_batch(params.batch_size // processes)


def alike(variants: list[Pretraining]) -> int:
    """How many there are, if the time of one tells that of all: same batch, epochs and encoder; else 1."""
    kinds = {
        (each.batch_size, each.epochs, own, str(each.options) if own else "")
        for each in variants
        for own in [method_class(each.method).own_encoder]
    }
    return len(variants) if len(kinds) == 1 else 1


def build_method(params: Pretraining) -> Method:
    """A freshly initialized method of one variant, from torch's global generator."""
    options = check_method(params)
    return method_class(params.method)(options, params)
