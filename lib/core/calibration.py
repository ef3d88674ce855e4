"""BatchNorm's running statistics, estimated anew for the network as it ended up.

In training they trail behind: an average over the last batches of a network that was still moving, of momentum 0.1. A
network that was not trained has none, and MoCo counts groups of a batch.
"""

import copy

import torch
from torch import Tensor, nn

from lib.methods.base import Method
from lib.params.pretraining import Pretraining
from lib.runtime.machine import Machine, autocast
from lib.runtime.seeds import generator
from lib.views.augment import augment, draw


@torch.no_grad()
def calibrate_batchnorm(
    method: Method, images: Tensor, mean: Tensor, std: Tensor, params: Pretraining, machine: Machine
) -> None:
    """Set the running statistics behind latents and projections to the mean over one pass of the training images.

    Images uint8 [N, 3, S, S] and the method are on the machine's device; mean and std [3]. Each image is seen once, as
    one augmented view, in batches of the training's size; a last one that is not whole is left out, as in training.
    Without training they are of 256 images, the usual size. Every process takes all images, so that all have the same
    statistics.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    norms = [module for module in method.modules() if isinstance(module, kinds) and module.track_running_stats]
    if not norms:
        return
    before = [(norm.momentum, copy.deepcopy(dict(norm.named_buffers()))) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    method.train()
    size = min(params.micro_batch_size or params.batch_size, len(images))
    order = torch.randperm(len(images), generator=generator(params.seed, "calibration order")).to(images.device)
    for step in range(len(images) // size):
        stream = generator(params.seed, "calibration", step)
        drawn = draw(params.augment, stream, size, *images.shape[-2:]).to(machine.device)
        views = augment(images[order[step * size : (step + 1) * size]], drawn, mean, std)
        with autocast(machine):
            method.project(method.latents(views.contiguous(memory_format=torch.channels_last)))
    for norm, (momentum, buffers) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if not norm.num_batches_tracked:  # behind no latent and no projection, such as a predictor's
            norm.load_state_dict(buffers, strict=False)
