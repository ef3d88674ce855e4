"""``python -m lib <command>``: what the pipeline offers beside its stages. Each command has ``--help``."""

import os
import sys
from importlib import import_module

from lib.runtime.errors import UserError, print_anywhere

COMMANDS = {
    "repro": ("lib.repro", "dvc repro, with the number of each stage and without DVC's hints"),
    "plan": ("lib.plan", "what a change would rerun, why, and about how long"),
    "experiments": ("lib.experiments", "DVC's experiments: what changed, and one measure per variant"),
    "preset": ("lib.preset", "copy a preset to params.yaml"),
    "show": ("lib.report.show", "the table, in the terminal"),
    "trace": ("lib.trace", "where an output comes from"),
    "explore": ("lib.commands:explore", "a latent's points for Embedding Atlas and TensorBoard's projector"),
    "record": ("lib.report.record", "keep finished variants, with tables and pictures, under docs/results"),
    "embed": ("lib.commands:embed", "latents of any pictures by a trained variant, as CSV, npz or Parquet"),
    "neighbors": ("lib.commands:neighbors", "the nearest images of a picture as a sheet; near-duplicates of the data"),
    "verdict": ("lib.commands:verdict", "the verdict on the hypotheses, from a folder of runs"),
    "willshaw": ("lib.report.willshaw", "what a Willshaw memory recalls of a variant's binary codes"),
    "export": ("lib.commands:export", "a trained encoder for torchvision, timm and ONNX, with its model card"),
    "card": ("lib.commands:card", "measure the memory of any encoder, on any images"),
    "prune": ("lib.core.checkpoint", "remove the checkpoints of finished trainings"),
    "offline-plots": ("lib.offline_plots", "make dvc plots show work without internet"),
}


def main() -> None:
    print_anywhere()
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command not in COMMANDS:
        known = "\n".join(f"  {name:15}{about}" for name, (_, about) in COMMANDS.items())
        text = f"usage: python -m lib <command>\n\n{known}"
        if command not in ("-h", "--help"):
            sys.exit(f"error: there is no command {command!r}\n{text}")
        print(text)
        sys.exit()
    try:
        module, _, name = COMMANDS[command][0].partition(":")
        getattr(import_module(module), name or "main")(sys.argv[2:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("lib", "None"):
            raise
        sys.exit(f"error: this Python has no {error.name}; . .venv/bin/activate, where make install has put it")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
