"""A published pickle of plain values and uint8 arrays, read without running what a pickle may ask for.

A pickle names functions and calls them. The one reader here resolves three names, those that numpy wrote for an
array, and to stand-ins of this file instead of numpy's own; with any other name it stops before a call. What
remains are dict, list, str, bytes, int and the like, which a pickle holds as values.
"""

import io
import pickle
from typing import Any

import numpy

from lib.runtime.errors import UserError


class _Array:
    """Stands in for ``numpy.ndarray`` and for the function that rebuilds one: uint8 only."""

    __slots__ = ("values",)

    def __init__(self, *_arguments: Any) -> None:
        """What numpy is given here is a placeholder; everything is in the state."""

    def __setstate__(self, state: tuple) -> None:
        _version, shape, kind, by_columns, content = state
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise ValueError("an array without its type or its bytes")
        self.values = numpy.frombuffer(content, numpy.uint8).reshape(shape, order="F" if by_columns else "C")


class _Type:
    """Stands in for ``numpy.dtype``."""

    __slots__ = ()

    def __init__(self, name: bytes, *_arguments: Any) -> None:
        if name != b"u1":
            raise ValueError(f"an array of {name!r}, not of bytes")

    def __setstate__(self, _state: tuple) -> None:
        """Byte order and field names, which single bytes do not have."""


_ADMITTED = {("numpy.core.multiarray", "_reconstruct"): _Array, ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ADMITTED:
            raise UserError(f"asks to run {f'{module}.{name}'!r}")
        return _ADMITTED[module, name]


def read_pickle(content: bytes, what: str) -> dict[bytes, Any]:
    """The dict in a pickle that Python 2 wrote: its strings as bytes, its arrays uint8.

    Raises:
        UserError: it asks for anything but arrays and plain values, is damaged, or is no dict.
    """
    try:
        found = _Reader(io.BytesIO(content), encoding="bytes").load()
        return {key: value.values if isinstance(value, _Array) else value for key, value in found.items()}
    except Exception as error:  # a damaged pickle raises errors of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{what} is not read: it is no dict of plain values and byte arrays ({reason}); get the official archive"
        ) from None
