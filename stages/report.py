"""Write report.html: tables, charts and the latent explorer of all variants, on one page."""

from lib.runtime.stage import run_stage


def main() -> None:
    from lib.data.store import load_data
    from lib.params.experiment import read_experiment
    from lib.report.page.build import write_report

    left_out = write_report(read_experiment(), load_data().shown()[0].numpy())
    print("report.html: open it in a browser" + (f"; {len(left_out)} latents did not fit" if left_out else ""))


if __name__ == "__main__":
    run_stage(main, "Write the page with the results and the explorer of all variants.")
