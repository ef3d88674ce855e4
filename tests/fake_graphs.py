"""CUDA graphs on a CPU, for tests of what is captured: operations are noted, and replayed into the same storages."""

from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class FakeGraph:
    """Replays what was done while it was captured."""

    def __init__(self) -> None:
        self.noted: list[tuple] = []
        self.made: list[torch.Tensor] = []
        self.sharing: list[FakeGraph] = []  # graphs captured later into the same memory

    def pool(self) -> "FakeGraph":
        return self

    @torch.no_grad()
    def replay(self) -> None:
        for value in (value for graph in self.sharing for value in graph.made):
            if value.is_floating_point():
                value.data.fill_(torch.nan)  # on a device this may lie where an activation goes
        for operation, args, kwargs, outputs in self.noted:
            args, kwargs = tree_map(_data, args), tree_map(_data, kwargs)
            for old, new in zip(tree_leaves(outputs), tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.data.copy_(new)


class _Noting(TorchDispatchMode):
    """Notes operations. They are computed, for their shapes; what was there before is put back: a capture computes
    nothing."""

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.made: list[torch.Tensor] = []  # kept, so that no address is taken twice

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = _storages(self.made)
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in made:
                self.before.setdefault(value.data_ptr(), (value.detach(), value.detach().clone()))
        outputs = operation(*args, **(kwargs or {}))
        there = _storages([old for old, _ in self.before.values()])
        tensors = (value for value in tree_leaves(outputs) if isinstance(value, torch.Tensor))
        self.made += [value for value in tensors if value.untyped_storage().data_ptr() not in there]
        self.graph.noted.append((operation, args, kwargs or {}, outputs))
        return outputs

    def put_back(self) -> None:
        for value, before in self.before.values():
            if not torch.equal(value, before):
                value.copy_(before)


class _Stream:
    def wait_stream(self, other: Any) -> None:
        pass


class FakeDevice:
    """What `lib.core.cuda_graphs` asks of torch.cuda."""

    def __init__(self) -> None:
        self.mode, self.captures = 0, 0

    def install(self, monkeypatch: Any) -> "FakeDevice":
        @contextmanager
        def graph(captured: FakeGraph, pool: FakeGraph | None = None):
            self.captures += 1
            with _Noting(captured) as noting:
                yield
            captured.made = noting.made
            if pool:
                pool.sharing.append(captured)
            with torch.no_grad():
                noting.put_back()

        fakes = {
            "CUDAGraph": FakeGraph,
            "graph": graph,
            "device": lambda _: nullcontext(),
            "Stream": _Stream,
            "stream": lambda _: nullcontext(),
            "current_stream": _Stream,
            "get_rng_state": torch.get_rng_state,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        return self

    def synchronize(self) -> None:
        """As torch does where it is told to tell."""
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")


def _data(value: Any) -> Any:
    return value.data if isinstance(value, torch.Tensor) else value


def _storages(values: list[torch.Tensor]) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in values}
