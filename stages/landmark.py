"""Ask a memory of plain pixels, reduced to 8x8: where they stand beside latents."""

from pathlib import Path

from lib.runtime.stage import run_stage


def main() -> None:
    from lib.data.store import IMAGES_FILE, load_data
    from lib.evaluate.memory import pixel_landmark
    from lib.params.experiment import read_experiment
    from lib.runtime.files import write_json
    from lib.runtime.machine import read_machine

    experiment, machine = read_experiment(), read_machine(alone=True)
    found = pixel_landmark(load_data(IMAGES_FILE), experiment.shared.augment, experiment.memory, machine)
    write_json(Path("data/landmarks/pixels_8x8.json"), found)


if __name__ == "__main__":
    run_stage(main, "Measure the memory of 8x8 pixels.")
