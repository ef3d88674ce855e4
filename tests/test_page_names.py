"""What pages name by file is there: functions, classes and tests; and the walk counts its hops rightly."""

import ast
import re

import pytest

from tests.examples import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
NAME = re.compile(r"`((?:lib|stages|tests)/[\w/]+\.py)(?:::|:)([\w.]+)`")


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
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
