"""Bring the chosen images into data/images.safetensors, with labels, splits and provenance."""

from lib.runtime.stage import run_stage


def main() -> None:
    from lib.data.sources import read_source
    from lib.data.store import IMAGES_FILE, save_data
    from lib.params.experiment import read_experiment

    data = read_source(read_experiment().dataset)
    save_data(IMAGES_FILE, data)
    about, counts, size = data.about, data.about["counts"], data.about["image_size"]
    train = f"{counts['train']:,} training images ({counts['validation']:,} of them for validation)"
    shape = f"{len(data.classes) or 'no'} classes, {size}x{size} RGB"
    print(f"{about['dataset']}: {train}, {counts['test']:,} test images, {shape}")
    if not data.classes:
        print("no labels: what needs them (probe, kNN, concept bits, confusion) will be left out")
    ignored = ", ".join(f"{count} {kind}" for kind, count in about.get("ignored", {}).items())
    print(f"source: {about['source']}" + (f"; files left out: {ignored}" if ignored else ""))
    print(f"written: {IMAGES_FILE}, {IMAGES_FILE.stat().st_size / 1e6:.1f} MB, content sha256 {about['checksum'][:12]}")


if __name__ == "__main__":
    run_stage(main, "Read the dataset into one file.")
