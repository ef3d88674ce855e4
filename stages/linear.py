"""Measure one variant's frozen latents: linear probe, nearest neighbors, the study's own protocol."""

from pathlib import Path

from lib.runtime.stage import remove_charts, run_stage


def main(variant: str) -> None:
    from lib.data.store import IMAGES_FILE, load_data
    from lib.evaluate.linear import evaluate, write_evaluation
    from lib.evaluate.record import said
    from lib.methods.export import encoder_file, load_method
    from lib.params.experiment import read_experiment
    from lib.runtime.machine import read_machine

    experiment, machine = read_experiment(), read_machine(alone=True)
    method, about = load_method(encoder_file(variant))
    data = load_data(IMAGES_FILE)
    evaluation = evaluate(method, about, data, experiment.linear, experiment.knn, machine)
    write_evaluation(evaluation, data.test_labels, Path("metrics") / f"{variant}.json", Path("data/scores") / variant)
    remove_charts()
    print(said(variant, evaluation.metrics))


if __name__ == "__main__":
    run_stage(main, "Measure one variant's latents: linear probe, kNN, the study's protocol.", per_variant=True)
