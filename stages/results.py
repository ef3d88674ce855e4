"""All variants' results in one table, with the tables and pictures of the report."""

from lib.runtime.stage import run_stage


def main() -> None:
    from lib.params.experiment import read_experiment
    from lib.report.results import write_results
    from lib.resolve import remove_left_overs

    experiment = read_experiment()
    # also where an older state was checked out, and resolve had nothing to do
    for path in remove_left_overs(experiment.variants):
        print(f"{path} removed: params.yaml has no such variant any more")
    write_results(experiment)


if __name__ == "__main__":
    run_stage(main, "Collect the results of all variants into tables and pictures.")
