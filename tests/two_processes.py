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
from lib.core.loop import pretrain
from lib.core.trainer import Pretrainer
from lib.methods import build_method
from lib.methods.moco import MoCo, dealt_out
from lib.params.pretraining import Optimizer, Pretraining
from lib.runtime.errors import UserError
from tests.examples import CPU, FORMS, images, params_file, pretraining

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def all_variants() -> dict[str, Pretraining]:
    """One of every method at least, and other forms, without those that are not trained at all."""
    found = {variant: pretraining(variant) for variant in [*params_file()["variants"], *FORMS]}
    return {
        variant: replace(params, batch_size=8 * max(1, params.options.get("norm_rows", 0)))
        for variant, params in found.items()
        if params.epochs
    }


def without_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, BATCH_NORMS):
            setattr(module, name, nn.Identity())
        else:
            without_batch_norm(child)


class SumOverProcesses(torch.autograd.Function):
    """The same sum in every process, and of the slopes on the way back."""

    @staticmethod
    def forward(_, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    backward = forward


class SharedStatistics(nn.Module):
    """BatchNorm over the rows of all processes: the formula of SyncBatchNorm, which torch has on CUDA alone."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, features: Tensor) -> Tensor:
        places = [axis for axis in range(features.dim()) if axis != 1]
        shape = [1, -1] + [1] * (features.dim() - 2)
        count = distributed.get_world_size() * features.numel() / features.shape[1]
        mean = SumOverProcesses.apply(features.sum(places)) / count
        centred = features - mean.view(shape)
        variance = SumOverProcesses.apply(centred.square().sum(places)) / count
        normal = centred / (variance + self.norm.eps).sqrt().view(shape)
        return normal * self.norm.weight.view(shape) + self.norm.bias.view(shape) if self.norm.affine else normal


def with_shared_statistics(module: nn.Module) -> None:
    """In one process, BatchNorm stays what it is."""
    for name, child in module.named_children():
        if not isinstance(child, BATCH_NORMS):
            with_shared_statistics(child)
        elif processes.world_size() > 1:
            setattr(module, name, SharedStatistics(child))
    with_groups_of_two(module, shared=True)


def with_own_statistics(module: nn.Module) -> None:
    """What processes on a CPU do: whole batches are normalized otherwise, MoCo's groups are not."""
    with_groups_of_two(module, shared=False)


def with_groups_of_two(module: nn.Module, shared: bool) -> None:
    """In one process, give MoCo the groups that two have.

    Either half of the batch deals out its keys by itself, and ``shared`` statistics are those of the groups of the
    same place in both.
    """
    if processes.world_size() > 1 or not isinstance(module, MoCo) or not module.options.norm_rows:
        return
    rows = module.options.norm_rows

    def regrouped(embed, deal):
        def embed_regrouped(images: Tensor) -> Tensor:
            half = len(images) // 2
            order = torch.cat([deal(half, rows), half + deal(half, rows)])
            order = order.view(2, -1, rows).transpose(0, 1).flatten() if shared else order
            return embed(images[order])[order.argsort()]

        return embed_regrouped

    module.options = replace(module.options, norm_rows=(1 + shared) * rows, shuffle=False)
    module.queries = regrouped(module.queries, lambda count, _: torch.arange(count))
    module.keys = regrouped(module.keys, dealt_out)


CASES = {
    "micro-batches": (without_batch_norm, 4),
    "shared statistics": (with_shared_statistics, 1),
    "own statistics": (with_own_statistics, 1),
}  # and how many micro-batches a whole batch would have


def cases() -> list[tuple[str, str]]:
    """Every variant in every case in which two processes train what one does."""
    return [
        (variant, case)
        for variant, params in all_variants().items()
        for case in CASES
        if case != "own statistics" or params.options.get("norm_rows")
    ]


@contextmanager
def alone() -> Iterator[None]:
    """This process computes whole batches by itself, as if there were no other."""
    kept = processes.world, processes.rank
    processes.world, processes.rank = lambda: 1, lambda: 0
    try:
        yield
    finally:
        processes.world, processes.rank = kept


def in_double_precision(method: nn.Module) -> nn.Module:
    """Embed so, that only what is computed can differ, and not how a sum of it was rounded."""
    embed = method.embed

    def embed_in_double(views: list[Tensor]) -> dict[str, Tensor]:
        with patch.object(Tensor, "float", Tensor.double):
            return embed([view.double() for view in views])

    method.embed = embed_in_double
    return method.double()


def trained(params: Pretraining, prepare) -> tuple[list[Tensor], Tensor, list[Tensor], dict[str, Tensor]]:
    """The views of the first batch, its loss with its parts, its gradient, and what is learned in a step of it."""
    torch.manual_seed(0)
    method = build_method(params)
    prepare(method)
    run = Pretrainer(in_double_precision(method), images(), params, CPU)
    rows = run.order(0)[0]
    views = [processes.gather(view) for view in run.views(run.draws(0, 0), rows, run.rows)]
    loss = run.gradient(0, 0, rows)
    gradient = [weight.grad.clone() for weight in method.parameters() if weight.grad is not None]
    method.zero_grad(set_to_none=True)
    run.step(0, 0, rows)
    learned = {
        name.replace(".norm.", "."): value
        for name, value in method.state_dict().items()
        if "running_" not in name and "num_batches" not in name
    }
    return views, loss, gradient, learned


def compare(params: Pretraining, prepare, parts: int) -> None:
    """Raise AssertionError where two processes and one differ."""
    micro_batch_size = params.batch_size // parts if parts > 1 else 0
    params = replace(params, optimizer=Optimizer(name="sgd", lr=0.01))  # Adam would blow up what is nearly zero
    shared = trained(replace(params, micro_batch_size=micro_batch_size), prepare)
    with alone():
        whole = trained(params, prepare)
    for name, some, all_, bound in zip(
        ("views", "loss", "gradient", "learned"), shared, whole, (1e-6, 1e-5, 1e-4, 1e-5)
    ):
        torch.testing.assert_close(some, all_, atol=bound, rtol=bound, msg=lambda text: f"{name}: {text}")


def parity() -> None:
    variants = all_variants()
    for variant, case in cases():
        try:
            compare(variants[variant], *CASES[case])
            verdict = "agrees"
        except AssertionError as difference:
            verdict = " ".join(str(difference).split())
        print(f"{processes.rank()}: {variant}, {case}: {verdict}\n", end="", flush=True)


def from_the_lead() -> None:
    """What only the lead can read reaches the others, and machines that differ are refused."""
    rank = processes.rank()
    assert processes.broadcast(lambda: None) is None
    given = processes.broadcast(lambda: {"rank": rank, "weight": torch.full((2, 3), float(rank))})
    assert given["rank"] == 0 and torch.equal(given["weight"], torch.zeros(2, 3))
    processes.require_same("digest")
    try:
        processes.require_same(f"digest {rank}")
    except UserError as refusal:
        assert f"process {rank} and process {1 - rank} differ" in str(refusal)
        print(f"{rank}: lead: agrees\n", end="", flush=True)


def resume(folder: Path) -> None:
    """The lead has the checkpoint of an interrupted training, the other has a disk of its own with nothing on it."""
    params = pretraining("dual")
    store = CheckpointStore("dual", "key", root=folder / str(processes.rank()))

    def fresh() -> Pretrainer:
        torch.manual_seed(processes.rank())  # what the lead's checkpoint does not set would differ
        return Pretrainer(build_method(params), images(), params, CPU)

    run = fresh()
    if processes.rank() == 0:
        with alone():
            begun = Pretrainer(build_method(params), images(), params, CPU)
            begun.position.step, begun.position.sums = 2, begun.step(0, 0, begun.order(0)[0]).tolist()
            store.folder.mkdir(parents=True)
            store.save(begun.state())
    pretrain(run, store, folder / str(processes.rank()) / "curve.csv", lambda method: 50.0)
    for name, weight in run.method.named_parameters():
        both = processes.gather(weight.detach()[None])
        assert torch.equal(both[0], both[1]), name
    assert run.position.epoch == params.epochs
    print(f"{processes.rank()}: resume: agrees\n", end="", flush=True)


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    from_the_lead()
    parity()
    resume(Path(sys.argv[1]))
    distributed.destroy_process_group()
