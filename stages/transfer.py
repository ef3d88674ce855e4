"""Train classifiers that start from one variant's filters, and from others to compare."""

from pathlib import Path

from lib.runtime.stage import run_stage


def main(variant: str) -> None:
    import pandas

    from lib.data.store import IMAGES_FILE, load_data
    from lib.evaluate.transfer import arms, compare, filters_file, first_layer, given_filters, summary
    from lib.params.experiment import read_experiment
    from lib.report.figures import save_figure
    from lib.report.figures_transfer import filters_figure, transfer_figure
    from lib.runtime.files import write_json, write_table, write_tensors
    from lib.runtime.machine import read_machine

    experiment, machine = read_experiment(), read_machine(alone=True)
    params, seed = experiment.transfer, experiment.variants[variant].seed
    own = first_layer(Path("data/encoders") / f"{variant}.safetensors", variant)
    starts, data = arms(own, Path(params.source) if params.source else None), load_data(IMAGES_FILE)
    outcomes = compare(starts, data, params, machine, seed, f"{variant}: transfer")
    rows = [{"arm": outcome.name, **row} for outcome in outcomes for row in outcome.curve]
    filters, about = filters_file(own, outcomes), {"variant": variant, "data": data.about["checksum"]}
    write_tensors(Path("data/filters") / f"{variant}.safetensors", filters, about)
    write_json(Path("metrics/transfer") / f"{variant}.json", summary(outcomes))
    write_table(Path("plots/transfer") / f"{variant}.csv", pandas.DataFrame(rows))
    save_figure(Path("plots/transfer") / f"{variant}.png", transfer_figure, rows, variant)
    sheets = {name: weights.numpy() for name, weights in given_filters(starts).items()}
    whose = f"{variant}, of transfer.source" if params.source else variant
    save_figure(Path("plots/filters") / f"{variant}.png", filters_figure, sheets, whose)
    for name, top1 in summary(outcomes).items():
        validation = f"validation {top1['first_epoch']} after epoch 1, {top1['last_epoch']} at the end"
        print(f"{variant}: {name}: {validation}; test {top1['test_top1']} (percent)")


if __name__ == "__main__":
    run_stage(main, "Train classifiers that start from one variant's filters.", per_variant=True)
