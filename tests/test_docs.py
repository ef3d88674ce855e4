"""Pages lead somewhere, quote code as it is, and name what is there; the walk counts its hops rightly.

The method on docs/adding-a-method.md resolves, builds and learns, and its table names every hook.
"""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.methods.base import Method
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
    paths = set(re.findall(r"`((?:lib|stages|tests|presets|bench)/[\w/]+\.(?:py|yaml))`", text))
    written = {f"lib/methods/{name}.py" for name in (ADDED, "spectral")} | {f"tests/test_{ADDED}.py"}  # by the reader
    assert {path for path in paths - written if not (ROOT / path).exists()} == set()


def test_the_walk_counts_its_hops_and_files():
    for section in (ROOT / "docs/walk.md").read_text().split("\n## ")[1:]:
        hops, files = map(int, re.search(r"(\d+) hops in (\d+) files", section).groups())
        rows = re.findall(r"^\| (\d+) \| `([\w/.]+):", section, re.MULTILINE)
        assert [int(number) for number, _ in rows] == list(range(1, hops + 1))
        assert len({path for _, path in rows}) == files


# docs/adding-a-method.md


ADDING = (ROOT / "docs/adding-a-method.md").read_text()
ADDED = "alignment_uniformity"
# What a reader's training does, without a pipeline: eight views of eight images, again and again.
STEPS = f"""
import torch
from lib.methods import build_method
from lib.params.experiment import read_experiment
from lib.params.pretraining import Pretraining
from lib.resolve import resolve


def test_it_resolves_builds_and_learns():
    stored = resolve(read_experiment())["{ADDED}"]
    assert stored["options"] == {{"weight": 1.0, "sharpness": 2.0}}
    assert "lib/methods/{ADDED}.py" in stored.pop("code")
    params = Pretraining.from_json(stored)
    torch.manual_seed(0)
    method, views, totals = build_method(params), list(torch.randn(2, 8, 3, 16, 16)), []
    for _ in range(10):
        total, parts = method.loss(method.embed(views))
        totals.append(total.item())
        for weight, gradient in zip(method.parameters(), torch.autograd.grad(total, list(method.parameters()))):
            weight.data -= 0.1 * gradient
    assert parts.keys() == {{"alignment", "uniformity"}}
    assert totals[-1] < totals[0] - 0.3, totals
"""


def test_the_method_on_the_page_resolves_builds_and_learns(tmp_path):
    method, test = re.findall(r"```python\n(.*?)```", ADDING, re.DOTALL)
    block = re.search(r"```yaml\n(variants:\n.*?)```", ADDING, re.DOTALL)[1]
    assert read_yaml(block, "the page") == {"variants": {ADDED: {"method": ADDED}}}
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / f"lib/methods/{ADDED}.py").write_text(method)
    preset = (ROOT / "presets/demo.yaml").read_text().replace("encoder: small", "encoder: sdr")  # imported in no time
    (tmp_path / "params.yaml").write_text(preset.replace("variants:\n", block, 1))
    (tmp_path / "test_page.py").write_text(test)
    (tmp_path / "test_steps.py").write_text(STEPS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py", "test_steps.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_table_names_every_hook():
    hooks = {name for name, value in vars(Method).items() if not name.startswith("_")}
    named = set(re.findall(r"^\| `(\w+)(?:\(\w+(?:, \w+)*\)|\(\))?` \|", ADDING, re.MULTILINE))
    assert named == hooks | {"Options"}
    for name, argument in re.findall(r"^\| `(\w+)\((\w+)", ADDING, re.MULTILINE):
        assert argument in inspect.signature(getattr(Method, name)).parameters, name
