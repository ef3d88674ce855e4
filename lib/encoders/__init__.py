"""Networks that map images to a final feature map; each name is a file of this folder.

An encoder is an ``nn.Module`` with ``forward(images [B, 3, S, S]) -> map [B, C, s, s]``, the attribute
``width`` (C) and ``about()``, a record of its stem and padding for the exported file. Pooling the map
into latents is the method's choice. ``build`` of each file takes the number of input channels and a factor
of all its own channels, for methods that share the image out among several encoders.

``resnet`` is what the ResNets share.
``vgg6`` has no ``build``: methods that contrast patches bring it themselves, with their own options, and it returns
the codes of every layer.
"""

from importlib import import_module

from torch import nn


def build_encoder(name: str, inputs: int = 3, width: float = 1.0) -> nn.Module:
    """The encoder in ``lib/encoders/<name>.py``, freshly initialized from torch's global generator.

    It reads ``inputs`` channels, and each of its layers has ``width`` times the channels that the file names.
    """
    return import_module(f"lib.encoders.{name}").build(inputs, width)
