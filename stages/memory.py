"""Measure one variant's memory: what its latents tell of a degraded image and of its class, in bits."""

from pathlib import Path

from lib.runtime.stage import remove_charts, run_stage


def main(variant: str) -> None:
    from lib.data.store import IMAGES_FILE, load_data
    from lib.evaluate.memory import measure_memory, write_memory
    from lib.evaluate.record import said
    from lib.methods.export import encoder_file, load_method
    from lib.params.experiment import read_experiment
    from lib.runtime.machine import read_machine

    experiment, machine = read_experiment(), read_machine(alone=True)
    method, about = load_method(encoder_file(variant))
    data, augment = load_data(IMAGES_FILE), experiment.shared.augment
    evaluation = measure_memory(method, about, data, augment, experiment.memory, machine)
    write_memory(evaluation, Path("metrics/memory") / f"{variant}.json", Path("data/memory") / variant)
    remove_charts()
    print(said(variant, evaluation.metrics))


if __name__ == "__main__":
    run_stage(main, "Measure one variant's memory: episode bits and concept bits.", per_variant=True)
