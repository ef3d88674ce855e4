"""Write every latent and projection of the test split, without labels of all images; what follows sees no network."""

from pathlib import Path

from lib.runtime.stage import run_stage


def main(variant: str) -> None:
    from lib.data.store import IMAGES_FILE, load_data
    from lib.evaluate.embeddings import embed_data
    from lib.methods.export import encoder_file, load_method
    from lib.runtime.files import write_arrays
    from lib.runtime.machine import read_machine

    machine = read_machine(alone=True)
    method, _ = load_method(encoder_file(variant))
    write_arrays(Path("data/embeddings") / f"{variant}.npz", embed_data(method, load_data(IMAGES_FILE), machine))


if __name__ == "__main__":
    run_stage(main, "Write every latent and projection of the test split.", per_variant=True)
