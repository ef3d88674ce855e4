"""Commands whose work loads torch, which takes seconds: what they were given is read before that."""

import argparse
from pathlib import Path

from lib.runtime.errors import UserError
from lib.takeaway import ENCODERS


def card(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib card", description="Measure the memory of any encoder.")
    parser.add_argument("encoder", help=ENCODERS)
    parser.add_argument("--images", required=True, help="a folder, zip or tar of class folders, as for dataset: images")
    parser.add_argument("--size", type=int, help="pixels of the square that images become; default: the encoder's own")
    parser.add_argument("--on-bad-image", choices=("refuse", "skip"), default="refuse")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of timm or torchvision; else freshly initialized")
    parser.add_argument("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of RGB in 0..1")
    parser.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"))
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: cards/<encoder>")
    options = parser.parse_args(arguments)
    from lib.takeaway.card import card_of_pictures

    print("\n".join(card_of_pictures(**vars(options))))


def embed(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib embed", description="Latents of pictures, by a variant.")
    parser.add_argument("pictures", help="a picture, or a folder, zip or tar with pictures in folders of any names")
    parser.add_argument("--variant", required=True, help="a trained variant, for example simclr")
    parser.add_argument("--to", type=Path, default=Path("embeddings.csv"), help=".csv, .npz or .parquet (%(default)s)")
    how = "what becomes of a picture that cannot be read (%(default)s)"
    parser.add_argument("--on-bad-image", choices=("refuse", "skip"), default="refuse", help=how)
    options = parser.parse_args(arguments)
    from lib.embed_pictures import embed

    print(embed(**vars(options)))


def explore(arguments: list[str]) -> None:
    about = "Write a latent's test points for Embedding Atlas and for TensorBoard's projector."
    parser = argparse.ArgumentParser(prog="python -m lib explore", description=about)
    parser.add_argument("variant", help="a key of variants in params.yaml")
    parser.add_argument("--latent", help="one of its latents; the main one if none is named")
    parser.add_argument("--to", type=Path, help="a folder; explore/VARIANT if none is named")
    options = parser.parse_args(arguments)
    from lib.explore import written_points

    print(written_points(options.variant, options.latent, options.to or Path("explore") / options.variant))


def export(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib export", description="A trained encoder for other libraries.")
    parser.add_argument("variant", help="one that has been trained, for example simclr")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: exports/<variant>")
    options = parser.parse_args(arguments)
    from lib.takeaway.export import export_encoder

    print("\n".join(export_encoder(options.variant, options.to or Path("exports") / options.variant)))


def neighbors(arguments: list[str]) -> None:
    widest = 50  # a line of the sheet
    parser = argparse.ArgumentParser(prog="python -m lib neighbors", description="The nearest images of the data.")
    parser.add_argument("picture", nargs="?", help="a picture, or a folder of at most 20")
    parser.add_argument("--variant", help="a trained variant, for example simclr")
    parser.add_argument("--count", type=int, default=10, help="neighbors of each picture (%(default)s)")
    parser.add_argument("--duplicates", action="store_true", help="instead: near-duplicates among the data's images")
    parser.add_argument("--to", type=Path, help="the sheet, a .png (neighbors.png); a .csv of all near-duplicates")
    options = parser.parse_args(arguments)
    asked = [bool(options.picture), bool(options.variant)]
    if asked != [not options.duplicates] * 2 or not 0 < options.count <= widest:
        parser.error(f"give a picture, --variant and a --count from 1 to {widest}, or --duplicates alone")
    to, kind = options.to, ".csv" if options.duplicates else ".png"
    if to and to.suffix != kind:
        raise UserError(f"--to is {to}; allowed: a file that ends in {kind}")
    from lib.neighbors import neighbors, tell_duplicates
    from lib.report.show import say

    if options.duplicates:
        say("\n".join(tell_duplicates(to)))
    else:
        say("\n".join(neighbors(options.picture, options.variant, to or Path("neighbors.png"), options.count)))


def verdict(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib verdict", description="The verdict from a folder of runs.")
    parser.add_argument("folder", type=Path, help="holds runs/<variant>.json; receives verdict.json, .md and figures")
    parser.add_argument("--collect", action="store_true", help="first write FOLDER/runs of what is finished here")
    options = parser.parse_args(arguments)
    from lib.report.verdict import verdict_of

    print("\n".join(verdict_of(options.folder, add_finished=options.collect)))
