"""The verdict on the hypotheses, and one small file for each run from which it can be had again."""

from pathlib import Path

from lib.runtime.stage import run_stage


def main() -> None:
    from lib.params.experiment import read_experiment
    from lib.report.verdict import PIXELS, RUNS, required, run_file, write_verdict
    from lib.runtime.files import read_json, write_json

    experiment = read_experiment()
    rule, folder = required(experiment), Path("metrics/verdict")
    for variant in rule.arm_of:
        write_json(folder / RUNS / f"{variant}.json", run_file(variant, rule))
    if (landmark := Path("data/memory") / PIXELS).is_file():
        write_json(folder / PIXELS, read_json(landmark))
    print("\n".join(write_verdict(experiment, folder, Path("metrics/verdict"), Path("plots/verdict"))))


if __name__ == "__main__":
    run_stage(main, "Judge the hypotheses by the rule of params.yaml.")
