"""Pages lead somewhere, and quote code as it is."""

import re
from pathlib import Path

import pytest

from lib.params.spec import read_yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "bench", "data", "docs", "docs/results/*", "metrics", "plots", ".github")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md" if folder else "*.md"))
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
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
