"""Pages lead somewhere, quote code as it is, and name what is there; the walk counts its hops rightly."""

import ast
import re
from pathlib import Path

import pytest

from lib.params.spec import read_yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "bench", "data", "docs", "docs/results/*", "metrics", "plots", ".github")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md" if folder else "*.md"))
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
NAME = re.compile(r"`((?:lib|stages|tests)/[\w/]+\.py)(?:::|:)([\w.]+)`")
LARGEST = 400_000  # bytes of a recorded picture


@pytest.mark.parametrize("page", NAMES)
def test_the_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)", text)]
    assert [target for target in targets if target and not ((ROOT / page).parent / target).exists()] == []


@pytest.mark.parametrize("page", NAMES)
def test_what_a_page_quotes_is_what_it_says(page):
    text = (ROOT / page).read_text()
    for path, quoted in re.findall(r"`([\w/]+\.py)`:?\n+```python\n(.*?)```", text, re.DOTALL):
        if (ROOT / path).exists():  # not the file that a reader is about to write
            assert quoted == (ROOT / path).read_text(), path
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        read_yaml(block, page)


@pytest.mark.parametrize("record", sorted(path.name for path in (ROOT / "docs/results").glob("*cifar10*")))
def test_a_record_is_small(record):
    files = [path for path in (ROOT / "docs/results" / record).rglob("*") if path.is_file()]
    pictures = [path for path in files if path.suffix == ".png"]
    assert {path.name for path in files if path not in pictures} == {"README.md", "results.csv", "params.yaml"}
    assert len(pictures) <= 4 and all(path.stat().st_size < LARGEST for path in pictures)


def defined(path: str) -> set[str]:
    """Qualified names of a file's functions and classes."""
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse((ROOT / path).read_text()), "")
    return found


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_what_a_page_names_by_file_is_there(page):
    text = page.read_text()
    assert [f"{path}:{name}" for path, name in NAME.findall(text) if name not in defined(path)] == []
    paths = re.findall(r"`((?:lib|stages|tests|presets|bench)/[\w/]+\.(?:py|yaml))`", text)
    assert {path for path in paths if "alignment_uniformity" not in path and not (ROOT / path).exists()} == set()


def test_the_walk_counts_its_hops_and_files():
    for section in (ROOT / "docs/walk.md").read_text().split("\n## ")[1:]:
        hops, files = map(int, re.search(r"(\d+) hops in (\d+) files", section).groups())
        rows = re.findall(r"^\| (\d+) \| `([\w/.]+):", section, re.MULTILINE)
        assert [int(number) for number, _ in rows] == list(range(1, hops + 1))
        assert len({path for _, path in rows}) == files
