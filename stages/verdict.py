"""The verdict on the hypotheses, and one small file for each run from which it can be had again."""

from pathlib import Path

from lib.runtime.stage import run_stage


def main() -> None:
    from lib.params.experiment import read_experiment
    from lib.report.verdict import collect, required, write_verdict

    experiment, folder = read_experiment(), Path("metrics/verdict")
    rule = required(experiment)
    collect(rule, folder, rule.arm_of)
    print("\n".join(write_verdict(experiment, folder, Path("metrics/verdict"), Path("plots/verdict"))))


if __name__ == "__main__":
    run_stage(main, "Judge the hypotheses by the rule of params.yaml.")
