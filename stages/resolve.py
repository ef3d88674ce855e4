"""Turn params.yaml into one JSON for each variant; everything wrong in it is refused here, before hours of training."""

from lib.runtime.stage import remove_charts, run_stage


def main() -> None:
    from lib.data.store import IMAGES_FILE
    from lib.params.experiment import read_experiment
    from lib.resolve import VARIANTS, check_against_data, remove_left_overs, resolve, write_variants
    from lib.runtime.files import read_about
    from lib.runtime.machine import read_machine

    experiment = read_experiment()
    variants = resolve(experiment)
    check_against_data(experiment, read_about(IMAGES_FILE), read_machine().processes)
    write_variants(variants)
    remove_charts()  # also where DVC then takes a variant's numbers from its run cache, and no code of theirs runs
    for path in remove_left_overs(variants):
        print(f"{path} removed: params.yaml has no such variant any more")
    print(f"{len(variants)} variants written to {VARIANTS}: {', '.join(variants)}")


if __name__ == "__main__":
    run_stage(main, "Resolve params.yaml into one file for each variant.")
