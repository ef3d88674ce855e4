"""Run by test_scaling under torchrun: every method trained in two processes against one on the same batches.

One line from each process for each case: its rank, the case and ``agrees`` or what differs.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, distributed, nn

from lib.core import processes
from lib.core.checkpoint import CheckpointStore
from lib.core.loop import Monitor, pretrain
from lib.core.trainer import Pretrainer
from lib.methods import build_method
from lib.params.pretraining import Optimizer, Pretraining
from lib.runtime.errors import UserError
from tests.examples import CPU, VARIANTS, images, pretraining

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def without_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, BATCH_NORMS):
            setattr(module, name, nn.Identity())
        else:
            without_batch_norm(child)


# MoCo's groups are of a process's own images, and so others in one process than in two.
COMPARED = [variant for variant in VARIANTS if variant != "moco_groups"]


@contextmanager
def alone() -> Iterator[None]:
    """This process computes whole batches by itself, as if there were no other."""
    with patch.object(processes, "world_size", lambda: 1), patch.object(processes, "rank", lambda: 0):
        yield


def in_double_precision(method: nn.Module) -> nn.Module:
    """Embed so, that only what is computed can differ, and not how a sum of it was rounded."""
    embed = method.embed

    def embed_in_double(views: list[Tensor]) -> dict[str, Tensor]:
        with patch.object(Tensor, "float", Tensor.double):
            return embed([view.double() for view in views])

    method.embed = embed_in_double
    return method.double()


def trained(params: Pretraining) -> tuple[list[Tensor], Tensor, list[Tensor], dict[str, Tensor]]:
    """The views of the first batch, its loss with its parts, its gradient, and what is learned in a step of it."""
    torch.manual_seed(0)
    method = build_method(params)
    without_batch_norm(method)
    run = Pretrainer(in_double_precision(method), images(), params, CPU)
    order = run.order(0)[0]
    views = [processes.gather(view) for view in run.views(run.batch(0, 0, order))]
    loss = run.forward_backward(0, 0, order)
    gradient = [weight.grad.clone() for weight in method.parameters() if weight.grad is not None]
    method.zero_grad(set_to_none=True)
    run.step(0, 0, order)
    return views, loss, gradient, method.state_dict()


def parity(variant: str) -> None:
    """Two processes, in micro-batches, against one; without BatchNorm, whose statistics are of a process's own."""
    params = replace(pretraining(variant), optimizer=Optimizer(name="sgd", lr=0.01))  # Adam would blow up near zeros
    shared = trained(replace(params, micro_batch_size=4))
    with alone():
        whole = trained(params)
    names, bounds = ("views", "loss", "gradient", "learned"), (1e-6, 1e-5, 1e-4, 1e-5)
    for name, some, all_, bound in zip(names, shared, whole, bounds):
        torch.testing.assert_close(some, all_, atol=bound, rtol=bound, msg=lambda text, name=name: f"{name}: {text}")


def from_the_main_rank() -> None:
    """What only the main rank can read reaches the others, and machines that differ are refused."""
    rank = processes.rank()
    assert processes.broadcast(lambda: None) is None
    state = processes.broadcast(lambda: {"rank": rank, "weight": torch.full((2, 3), float(rank))})
    assert state["rank"] == 0 and torch.equal(state["weight"], torch.zeros(2, 3))
    processes.require_same("digest")
    try:
        processes.require_same(f"digest {rank}")
    except UserError as refusal:
        words = str(refusal)
    assert f"process {rank} and process {1 - rank} differ" in words


def resume(folder: Path) -> None:
    """The main rank has the checkpoint of an interrupted training, the other a disk of its own with nothing on it."""
    params, rank = pretraining("dual"), processes.rank()
    store = CheckpointStore("dual", "key", root=folder / str(rank))
    torch.manual_seed(rank)  # what the main rank's checkpoint does not set would differ
    run = Pretrainer(build_method(params), images(), params, CPU)
    if rank == 0:
        with alone():
            begun = Pretrainer(build_method(params), images(), params, CPU)
            begun.position.step, begun.position.sums = 2, begun.step(0, 0, begun.order(0)[0]).tolist()
            store.save(begun.state())
    pretrain(run, store, folder / str(rank) / "curve.csv", Monitor({"knn": "{}"}, lambda method: {"knn": 50.0}))
    for name, weight in run.method.named_parameters():
        both = processes.gather(weight.detach()[None])
        assert torch.equal(both[0], both[1]), name
    assert run.position.epoch == params.epochs


def judge(name: str, check, *args) -> None:
    try:
        check(*args)
        verdict = "agrees"
    except AssertionError as difference:
        verdict = " ".join(str(difference).split())
    print(f"{processes.rank()}: {name}: {verdict}\n", end="", flush=True)


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    judge("main rank", from_the_main_rank)
    for each in COMPARED:
        judge(each, parity, each)
    judge("resume", resume, Path(sys.argv[1]))
    distributed.destroy_process_group()
