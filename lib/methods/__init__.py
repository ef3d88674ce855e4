"""Methods, one file each: its losses, its options, its modules.

A method's name in params.yaml is the name of its file, which defines ``METHOD``, a subclass of
``lib.methods.base.Method``. Nothing else knows it by name.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lib.methods.base import DataFacts, Method
from lib.params.pretraining import SHARED, Pretraining
from lib.params.spec import nearest, parse
from lib.runtime.errors import UserError, shown


def method_names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\nMETHOD = " in path.read_text())


def method_class(name: Any) -> type[Method]:
    """The class that ``lib/methods/<name>.py`` defines; a UserError if there is none."""
    if name not in method_names():
        raise UserError(
            f"no method is named {shown(name)}{nearest(name, method_names())}; allowed: {', '.join(method_names())}"
        )
    return import_module(f"lib.methods.{name}").METHOD


def typed_options(params: Pretraining) -> Any:
    """The variant's options as its method types them; a UserError if it does not have them."""
    where = f"variants.{params.variant}"
    return parse(method_class(params.method).Options, params.options, where, also=("method", *SHARED))


def build_method(params: Pretraining) -> Method:
    """A freshly initialized method of one variant, from torch's global generator."""
    return method_class(params.method)(typed_options(params), params)


def try_method(params: Pretraining, images: int = 0, fitting: int = 0, classes: int = 0, processes: int = 1) -> Method:
    """Check a variant whole without computing anything: its options, and that its latents fit images and views.

    With ``images``, the number of training images (``fitting``: without those for validation), also whether the
    options fit to so many, of ``classes`` classes, and to a batch that is shared by ``processes``. Returns the method,
    which has shapes and no numbers; a UserError tells what does not fit.
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
        count = fitting if "labels" in method.needs else images
        method.setup(DataFacts(torch.zeros(3), torch.ones(3), count, classes, params.batch_size // processes))
    return method
