"""docs/adding-a-method.md: the method on the page resolves, builds and learns, and its table names every hook."""

import inspect
import re
import shutil
import subprocess
import sys

from lib.methods.base import Method
from lib.params.spec import read_yaml
from tests.examples import ROOT

PAGE = (ROOT / "docs/adding-a-method.md").read_text()
NAME = "alignment_uniformity"
# What a reader's training does, without a pipeline: eight views of eight images, again and again.
STEPS = f"""
import torch
from lib.methods import build_method
from lib.params.experiment import read_experiment
from lib.params.pretraining import Pretraining
from lib.resolve import resolve


def test_it_resolves_builds_and_learns():
    stored = resolve(read_experiment())["{NAME}"]
    assert stored["options"] == {{"weight": 1.0, "sharpness": 2.0}}
    assert "lib/methods/{NAME}.py" in stored.pop("code")
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
    method, test = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    block = re.search(r"```yaml\n(variants:\n.*?)```", PAGE, re.DOTALL)[1]
    assert read_yaml(block, "the page") == {"variants": {NAME: {"method": NAME}}}
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / f"lib/methods/{NAME}.py").write_text(method)
    preset = (ROOT / "presets/demo.yaml").read_text().replace("encoder: small", "encoder: sdr")  # imported in no time
    (tmp_path / "params.yaml").write_text(preset.replace("variants:\n", block, 1))
    (tmp_path / "test_page.py").write_text(test)
    (tmp_path / "test_steps.py").write_text(STEPS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py", "test_steps.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_table_names_every_hook():
    hooks = {name for name, value in vars(Method).items() if not name.startswith("_")}
    named = set(re.findall(r"^\| `(\w+)(?:\(\w+(?:, \w+)*\)|\(\))?` \|", PAGE, re.MULTILINE))
    assert named == hooks | {"Options"}
    for name, argument in re.findall(r"^\| `(\w+)\((\w+)", PAGE, re.MULTILINE):
        assert argument in inspect.signature(getattr(Method, name)).parameters, name
