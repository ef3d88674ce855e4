"""All variants' results in one table, with the tables and pictures of the report."""

from lib.runtime.stage import run_stage


def main() -> None:
    from lib.params.experiment import read_experiment
    from lib.report.results import write_results

    write_results(read_experiment())


if __name__ == "__main__":
    run_stage(main, "Collect the results of all variants into tables and pictures.")
