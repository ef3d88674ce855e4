"""Networks that map images to a final feature map; each name is a file of this folder.

``build`` of each file takes the number of input channels and a factor of all its own channels, for methods that share
the image out among several encoders. Pooling the map into latents is the method's choice. ``resnet`` is what the
ResNets share; ``vgg6`` has no ``build``: methods that contrast patches bring it, and it returns every layer's codes.
"""

from importlib import import_module
from typing import Any

from torch import nn


class Encoder(nn.Module):
    """Shape: images [B, inputs, S, S] -> map [B, width, s, s]. ``conv1`` is its stem."""

    name: str
    width: int
    conv1: nn.Conv2d

    def about(self) -> dict[str, Any]:
        """What its weights do not tell, for the exported file: the stem, the padding, the pooling behind the stem."""
        return {
            "stem_kernel": self.conv1.kernel_size[0],
            "stem_stride": self.conv1.stride[0],
            "stem_padding": self.conv1.padding[0],
            "padding_mode": self.conv1.padding_mode,
            "max_pool": False,
            "width": self.width,
        }


def build_encoder(name: str, inputs: int = 3, width: float = 1.0) -> nn.Module:
    """The encoder in ``lib/encoders/<name>.py``, freshly initialized from torch's global generator, and its ``name``.

    It reads ``inputs`` channels; each of its layers has ``width`` times the channels that the file names.
    """
    encoder = import_module(f"lib.encoders.{name}").build(inputs, width)
    encoder.name = name
    return encoder
