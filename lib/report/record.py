"""Keep a finished run as a dated record: ``python -m lib.report.record NAME --title "..." --about "..."``.

Copies the generated tables and pictures to docs/results/NAME with the settings they came from and the arrays behind
them, writes a page that shows them, and puts the table and the pictures into README.md between two markers.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path, PureWindowsPath

from lib.params.evaluation import transfer_variants
from lib.params.pretraining import dataset_params, load_params, variant_names
from lib.runtime.errors import UserError
from lib.runtime.files import write_text

RECORDS = Path("docs/results")
README = Path("README.md")
BEGIN, END = "<!-- record: begin -->", "<!-- record: end -->"
LOCK = "dvc.lock"
COPIED = (
    "params.yaml",
    "metrics/results.csv",
    "metrics/results.md",
    "plots/curves.csv",
    "plots/curves.png",
    "plots/accuracy.png",
    "plots/confusion.png",
    "plots/tsne/overview.png",
)
MOST_PLANES = 12  # t-SNE pictures that a record has one by one
LONG = 30  # lines of a table that README.md shows whole
PICTURES = {
    "curves.png": "Loss and kNN accuracy on the validation images while training",
    "accuracy.png": "Test accuracy of every latent, by probe and by nearest neighbours",
    "overview.png": "t-SNE of the same test images for every latent: an illustration, not evidence",
    "confusion.png": "Confusion of the probe on the test images",
}
FOLDERS = {  # of further pictures
    "transfer/": "Classifiers that start from a variant's filters, and the filters",
    "willshaw/": "What a Willshaw memory recalls of the codes",
}


def write_record(name: str, title: str, about: str, root: Path = Path(), notes: str = "", by_dvc: bool = True) -> Path:
    """Copy the run in ``root`` to docs/results/``name``; returns the folder. All checks come before the first write.

    ``notes``: Markdown that the page has before its table. ``by_dvc``: whether DVC ran the stages, so that dvc.lock
    has the run's checksums; else the page says that it does not.

    Raises:
        UserError: ``name`` is no plain folder name, a file of the run is missing, code differs from the commit or
            has none, ``images_path`` is absolute, or README.md has no markers.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"{name!r} is not a usable name; allowed: letters, digits, ., _ and -, for example 2026-01-31-digits"
        )
    commit, readme = _commit(root), _readme_around(root / README)
    files = _files(root, by_dvc)
    folder = root / RECORDS / name
    for source, target in files.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / source, folder / target)
    results = (root / "metrics/results.md").read_text().removeprefix("# Results\n\n")
    write_text(folder / "README.md", _page(title, about, commit, results, files, notes))
    write_text(root / README, readme[0] + _block(name, title, about, results) + readme[1])
    return folder


def _files(root: Path, by_dvc: bool) -> dict[str, str]:
    """Every file of the run that a record keeps, and its place in the record."""
    wanted = (*COPIED, LOCK) if by_dvc else COPIED
    files = {path: Path(path).name for path in wanted if path != "metrics/results.md"}
    absent = [path for path in wanted if not (root / path).is_file()]
    if not absent:
        raw = load_params(root / "params.yaml")
        _refuse_absolute(dataset_params(raw).images_path)
        for variant in transfer_variants(raw, variant_names(raw)):
            own = {
                f"metrics/transfer/{variant}.json": f"transfer/{variant}.json",
                f"plots/transfer/{variant}.csv": f"transfer/{variant}.csv",
                f"plots/transfer/{variant}.png": f"transfer/{variant}.png",
                f"plots/filters/{variant}.png": f"transfer/{variant}-filters.png",
            }
            files |= own
            absent += [path for path in own if not (root / path).is_file()]
        planes: dict[str, str] = {}
        for variant in variant_names(raw):
            pictures = sorted((root / "plots/tsne" / variant).glob("*.png"))
            own = {
                f"metrics/{variant}.json": f"metrics/{variant}.json",
                f"data/scores/{variant}.json": f"scores/{variant}.json",
                f"data/scores/{variant}.npz": f"scores/{variant}.npz",
                f"data/tsne/{variant}.npz": f"tsne/{variant}.npz",
            }
            files |= own
            planes |= {path.relative_to(root).as_posix(): f"tsne/{variant}/{path.name}" for path in pictures}
            absent += [path for path in own if not (root / path).is_file()]
            absent += [] if pictures else [f"plots/tsne/{variant}/*.png"]
        files |= {
            path.relative_to(root).as_posix(): f"willshaw/{path.name}"  # made by a command, not by a stage
            for path in sorted((root / "plots/willshaw").glob("*.*"))
            if path.stem in variant_names(raw)
        }
        files |= planes if len(planes) <= MOST_PLANES else {}  # the overview has them all
    if absent:
        raise UserError(f"{absent[0]} does not exist; a record needs a finished run: dvc repro")
    return files


def _refuse_absolute(images_path: str) -> None:
    if Path(images_path).expanduser().is_absolute() or PureWindowsPath(images_path).is_absolute():
        raise UserError(
            "params.yaml: images_path is absolute, and a record must not name one machine's folders; "
            "put a link beside params.yaml, set images_path to its name and run dvc repro"
        )


def _page(title: str, about: str, commit: str, results: str, files: dict[str, str], notes: str) -> str:
    lock = (
        f"[{LOCK}]({LOCK})" if LOCK in files else f"the stages were run one by one, without DVC, so there is no {LOCK}"
    )
    made = (
        f"Made with the code of commit {commit} (the last that changed lib, stages or dvc.yaml). Settings: "
        f"[params.yaml](params.yaml), {lock}; numbers: [results.csv](results.csv), [curves.csv](curves.csv), "
        "[metrics](metrics); predictions and planes of the test images: [scores](scores), [tsne](tsne)."
    )
    for folder, heading in FOLDERS.items():
        shown = sorted(target for target in files.values() if target.startswith(folder) and target.endswith(".png"))
        if shown:
            shown = "\n\n".join(f"![{Path(target).stem}]({target})" for target in shown)
            results += f"\n## {heading}\n\n{shown}\n"
    pictures = "\n\n".join(f"![{words}]({picture})\n\n{words}." for picture, words in PICTURES.items())
    large = [target for target in files.values() if target.startswith("tsne/") and target.endswith(".png")]
    names = ", ".join(f"[{Path(target).parent.name} · {Path(target).stem}]({target})" for target in large)
    noted = f"{notes.strip()}\n\n" if notes.strip() else ""
    alone = f"Each t-SNE picture by itself is in [tsne](tsne): {names}.\n" if large else ""
    page = f"# {title}\n\n{about}\n\n{made}\n\n{noted}{results}\n## RawDataset\n\n{pictures}\n\n{alone}"
    return page.rstrip("\n") + "\n"


def _readme_around(readme: Path) -> tuple[str, str]:
    """The text up to the first marker and from the second on, each with its marker."""
    text = readme.read_text() if readme.is_file() else ""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise UserError(
            f"{readme} lacks the markers; put {BEGIN} and after it {END}, each once, where the table belongs"
        )
    return text[: begin + len(BEGIN)], text[end:]


def _block(name: str, title: str, about: str, results: str) -> str:
    place = f"{RECORDS.as_posix()}/{name}"
    table, rest = _without_other_latents(results.split("\n\n## ", 1)[0])
    chosen = ("curves.png",) if rest else ("curves.png", "overview.png")  # that of so many latents is too tall
    pictures = "\n\n".join(f"![{PICTURES[picture]}]({place}/{picture})" for picture in chosen)
    return (
        f"\n**{title}.** {about}\n\n{table}\n\n{pictures}\n\n"
        f"How to read each column{rest}, the runs and all pictures: [{place}]({place}/README.md).\n"
    )


def _without_other_latents(table: str) -> tuple[str, str]:
    """A long table without the rows that only latents beside the main ones have; and what to say of them."""
    lines = table.split("\n")
    others = {line for line in lines if re.match(r"\| [^|]* · [^|]* \| - \| - \|", line)}
    studied = any(re.match(r"\| [^|]* · [^|]* \| [0-9]", line) for line in lines)  # only then main latents can be told
    if len(lines) <= LONG or not others or not studied:
        return table, ""
    return "\n".join(line for line in lines if line not in others), f", {len(others)} other latents"


def _commit(root: Path) -> str:
    """The last commit that changed the code that is there now."""
    changed = _git(root, "status", "--porcelain")
    if changed:
        raise UserError(
            f"{changed.split()[-1]} differs from the last commit; a record needs code that can be found "
            "again: commit it and run dvc repro"
        )
    commit = _git(root, "log", "-1", "--format=%h of %cs")
    if not commit:
        raise UserError(
            "no commit holds lib, stages and dvc.yaml; a record needs code that can be found again: commit "
            "them and run dvc repro"
        )
    return commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", *arguments, "--", "lib", "stages", "dvc.yaml"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            "this folder is no git repository with commits; a record needs code that can be found again: "
            "git init, commit everything, then run dvc repro"
        ) from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep the finished run as a record under docs/results.")
    parser.add_argument("name", help="folder, for example 2026-01-31-digits")
    parser.add_argument("--title", required=True)
    parser.add_argument("--about", required=True, help="what was run, on what, and what to beware of")
    parser.add_argument("--notes", type=Path, help="a file of Markdown for the record's page: what was found")
    parser.add_argument("--without-dvc", action="store_true", help="the stages were run by hand: no dvc.lock")
    arguments = parser.parse_args()
    try:
        if arguments.notes and not arguments.notes.is_file():
            raise UserError(f"{arguments.notes} does not exist; --notes is a file of Markdown")
        notes = arguments.notes.read_text() if arguments.notes else ""
        print(
            write_record(
                arguments.name, arguments.title, arguments.about, notes=notes, by_dvc=not arguments.without_dvc
            )
        )
    except UserError as error:
        sys.exit(f"error: {error}")
