"""Run by test_core under torchrun: each variant's loss and gradient in two processes against one."""

import torch
from torch import distributed, nn

from lib.core import processes
from lib.core.trainer import Pretrainer, micro_batches
from lib.methods import build_method
from tests.examples import CPU, images, params_file, pretraining


def without_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, nn.Identity())
        else:
            without_batch_norm(child)


def main() -> None:
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    for variant in params_file()["variants"]:
        params = pretraining(variant)
        torch.manual_seed(0)
        method = build_method(params)
        without_batch_norm(method)
        run = Pretrainer(method, images(), params, CPU)
        order = run.order(0)[0]
        shared = run.gradient(0, 0, order)
        gradients = [weight.grad.clone() for weight in method.parameters()]
        method.zero_grad()
        world, processes.world = processes.world, lambda: 1
        run.rows = slice(0, params.batch_size)
        run.micro_batches = micro_batches(run.rows, 0)
        alone = run.gradient(0, 0, order)
        processes.world = world
        torch.testing.assert_close(shared, alone, atol=1e-6, rtol=1e-6)
        for gradient, weight in zip(gradients, method.parameters()):
            torch.testing.assert_close(gradient, weight.grad, atol=1e-5, rtol=1e-4)
        if processes.rank() == 0:
            print(f"{variant} agrees", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
