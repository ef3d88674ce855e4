"""Pretrain one variant without labels: data/images.safetensors -> data/encoders/<variant>.safetensors and its curve."""

from contextlib import nullcontext
from pathlib import Path

from lib.runtime.stage import remove_charts, run_stage


def main(variant: str) -> None:
    import torch

    from lib.core import processes
    from lib.core.checkpoint import CheckpointStore, fingerprint
    from lib.core.loop import pretrain
    from lib.core.trainer import Pretrainer
    from lib.data.store import IMAGES_FILE, load_data
    from lib.evaluate.monitor import data_monitor
    from lib.methods import build_method
    from lib.methods.export import encoder_file, save_method
    from lib.params.pretraining import Pretraining
    from lib.resolve import read_variant
    from lib.runtime.files import read_about
    from lib.runtime.machine import read_machine
    from lib.runtime.seeds import generator

    stored, machine = read_variant(variant), read_machine()
    params = Pretraining.from_json(stored)
    store = CheckpointStore(variant, fingerprint(stored, read_about(IMAGES_FILE)["checksum"]))
    processes.start(machine, "stages.pretrain", [variant])
    data = load_data(IMAGES_FILE)
    torch.manual_seed(generator(params.seed, "initial weights").initial_seed())
    trainer = Pretrainer(build_method(params), data, params, machine)
    main_rank = processes.rank() == 0
    with store.held() if main_rank else nullcontext():
        processes.barrier()  # nobody reads a checkpoint before the main rank holds the right to train
        pretrain(trainer, store, Path("plots/curves") / f"{variant}.csv", data_monitor(data, params, machine))
        if main_rank:
            save_method(encoder_file(variant), trainer.method, params, data.about)
            remove_charts()
    processes.stop()


if __name__ == "__main__":
    run_stage(main, "Pretrain one variant of params.yaml without labels.", per_variant=True)
