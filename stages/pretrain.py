"""Pretrain one variant: data/images.safetensors -> data/encoders/<variant>.safetensors and its curve."""

from contextlib import nullcontext
from pathlib import Path

from lib.runtime.stage import run_stage


def main(raw: dict, variant: str) -> None:
    import torch

    from lib.core import processes
    from lib.core.checkpoint import CheckpointStore, fingerprint
    from lib.core.loop import pretrain
    from lib.core.trainer import Pretrainer, check_batch
    from lib.data.store import IMAGES_FILE, load_data
    from lib.evaluate.monitor import knn_monitor
    from lib.methods import alike, build_method, try_method
    from lib.methods.export import encoder_file, save_method
    from lib.params.pretraining import pretraining_params, variant_names
    from lib.runtime.files import read_about
    from lib.runtime.machine import read_machine
    from lib.runtime.seeds import generator

    params, machine, about = pretraining_params(raw, variant), read_machine(), read_about(IMAGES_FILE)
    images, classes = about["counts"]["train"], len(about["classes"])
    check_batch(params, images, machine.processes)
    try_method(params, images, classes, machine.processes)
    store = CheckpointStore(variant, fingerprint(params.resolved(), about["checksum"]))  # of the code loaded so far
    others = [pretraining_params(raw, name) for name in variant_names(raw)]
    for other in others:  # a slip in a later variant must not wait for this one's end
        check_batch(other, images, machine.processes)
        try_method(other, images, classes, machine.processes)
    processes.start(machine, "stages.pretrain", [variant])
    data = load_data(IMAGES_FILE)
    torch.manual_seed(generator(params.seed, "initial weights").initial_seed())
    trainer = Pretrainer(build_method(params), data, params, machine)
    lead = processes.rank() == 0
    with store.held() if lead else nullcontext():
        processes.barrier()  # nobody reads a checkpoint before the lead holds the right to train
        curve, monitor = Path("plots/curves") / f"{variant}.csv", knn_monitor(data, params, machine)
        pretrain(trainer, store, curve, monitor, variants=alike(others))
        if lead:
            save_method(encoder_file(variant), trainer.method, params, data.about)
    processes.stop()


if __name__ == "__main__":
    run_stage(main, "Pretrain one variant of params.yaml without labels.", per_variant=True)
