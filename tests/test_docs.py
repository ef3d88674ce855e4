"""Pages that quote code quote it as it is."""

import re

import pytest

from lib.methods import build_method
from lib.params.pretraining import pretraining_params
from lib.params.spec import read_yaml
from tests.examples import ROOT, params_file

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
PAGE = (ROOT / "docs/adding-a-method.md").read_text()


@pytest.mark.parametrize("path", ["lib/losses/barlow_twins.py", "lib/methods/barlow_twins.py"])
def test_the_page_on_adding_a_method_quotes_the_file(path):
    section = PAGE[PAGE.index(f"`{path}`\n") :]
    assert re.search(r"```python\n(.*?)```", section, re.DOTALL)[1] == (ROOT / path).read_text()


def test_the_block_on_the_page_is_a_variant():
    block = read_yaml(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], "the page")
    raw = {**params_file(), "variants": {**params_file()["variants"], **block["variants"]}}
    for name in block["variants"]:
        build_method(pretraining_params(raw, name))


def test_the_example_is_short():
    lines = sum(
        len((ROOT / path).read_text().splitlines())
        for path in ("lib/losses/barlow_twins.py", "lib/methods/barlow_twins.py")
    )
    assert lines < 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
