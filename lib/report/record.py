"""Keep a finished run as a dated record: ``python -m lib.report.record NAME --title "..." --about "..."``.

Copies the generated tables and pictures to docs/results/NAME with the settings they came from, writes a
page that shows them, and puts the table and the pictures into README.md between two markers.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lib.errors import UserError
from lib.files import write_text

RECORDS = Path("docs/results")
README = Path("README.md")
BEGIN, END = "<!-- record: begin -->", "<!-- record: end -->"
COPIED = ("params.yaml", "dvc.lock", "metrics/results.csv", "metrics/results.md", "plots/curves.csv",
          "plots/curves.png", "plots/accuracy.png", "plots/confusion.png", "plots/tsne/overview.png")
PICTURES = {
    "curves.png": "Loss and kNN accuracy on the validation images while training",
    "accuracy.png": "Test accuracy of every latent, by probe and by nearest neighbours",
    "overview.png": "t-SNE of the same test images for every latent: an illustration, not evidence",
    "confusion.png": "Confusion of the probe on the test images",
}


def write_record(name: str, title: str, about: str, root: Path = Path()) -> Path:
    """Copy the run in ``root`` to docs/results/``name``; returns the folder.

    Raises:
        UserError: a file of the run is missing, code differs from the commit, or README.md has no markers.
    """
    commit = _commit(root)
    missing = [path for path in COPIED if not (root / path).is_file()]
    if missing:
        raise UserError(f"{missing[0]} does not exist; a record needs a finished run: dvc repro")
    folder = root / RECORDS / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in COPIED:
        shutil.copyfile(root / path, folder / Path(path).name)
    results = (folder / "results.md").read_text().removeprefix("# Results\n\n")
    (folder / "results.md").unlink()
    made = f"Made with the code of commit {commit}. Settings: [params.yaml](params.yaml), [dvc.lock](dvc.lock); " \
           "numbers: [results.csv](results.csv), [curves.csv](curves.csv)."
    pictures = "\n\n".join(f"![{words}]({picture})\n\n{words}." for picture, words in PICTURES.items())
    write_text(folder / "README.md", f"# {title}\n\n{about}\n\n{made}\n\n{results}\n## Pictures\n\n{pictures}\n")
    _show_in_readme(root / README, name, title, about, results)
    return folder


def _show_in_readme(readme: Path, name: str, title: str, about: str, results: str) -> None:
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise UserError(f"{readme} has no markers; put {BEGIN} and {END} where the table belongs")
    place = f"{RECORDS.as_posix()}/{name}"
    table = results.split("\n\n## ", 1)[0]
    pictures = "\n\n".join(f"![{PICTURES[picture]}]({place}/{picture})" for picture in ("curves.png", "overview.png"))
    block = (f"**{title}.** {about}\n\n{table}\n\n{pictures}\n\n"
             f"How to read each column, the runs and all pictures: [{place}]({place}/README.md).")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    write_text(readme, pattern.sub(lambda _: f"{BEGIN}\n{block}\n{END}", text))


def _commit(root: Path) -> str:
    """The last commit that changed the code that is there now."""
    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", "lib", "stages", "dvc.yaml"]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain")
    if changed:
        raise UserError(f"{changed.split()[-1]} differs from the last commit; a record needs code that can be found "
                        "again: commit it and run dvc repro")
    return git("log", "-1", "--format=%h of %cs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep the finished run as a record under docs/results.")
    parser.add_argument("name", help="folder, for example 2026-01-31-digits")
    parser.add_argument("--title", required=True)
    parser.add_argument("--about", required=True, help="what was run, on what, and what to beware of")
    arguments = parser.parse_args()
    try:
        print(write_record(arguments.name, arguments.title, arguments.about))
    except UserError as error:
        sys.exit(f"error: {error}")
