"""Imports point down, no Python thread is started, and the core names no method."""

import ast
import re
from pathlib import Path

from lib.methods import method_names
from tests.examples import ROOT

# From the top. A module may import its own layer and those below.
LAYERS = [
    ["stages"],
    ["lib/__main__.py", "lib/commands.py"],
    [
        *(
            f"lib/{name}.py"
            for name in ("resolve", "plan", "preset", "repro", "experiments", "explore", "trace", "offline_plots")
        ),
        *("lib/embed_pictures.py", "lib/neighbors.py", "lib/takeaway"),
    ],
    ["lib/report"],
    ["lib/evaluate", "lib/verdict"],
    ["lib/core"],
    ["lib/methods"],
    ["lib/views", "lib/encoders", "lib/data"],
    ["lib/params"],
    ["lib/runtime", "lib/params/spec.py"],  # machine.yaml is read as params.yaml is
]
FILES = [path.relative_to(ROOT) for folder in ("lib", "stages") for path in sorted((ROOT / folder).rglob("*.py"))]
THREADS = ("threading", "_thread", "concurrent", "multiprocessing", "asyncio", "joblib", "torch.multiprocessing")


def layer(path: Path) -> int:
    fits = [height for height, names in enumerate(LAYERS) if any(path.is_relative_to(name) for name in names)]
    return fits[-1] if fits else -1


def imported(tree: ast.AST) -> set[str]:
    """Modules that a file names in any import, also within functions and by import_module with a whole name."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "a relative import"
            modules.add(node.module)
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in THREADS:
            modules.add(node.value)
    return modules


def files_of(module: str) -> list[Path]:
    path = Path(*module.split("."))
    found = [path.with_suffix(".py"), path / "__init__.py"]
    return [file for file in found if (ROOT / file).is_file() and len(ast.parse((ROOT / file).read_text()).body) > 1]


def upward(path: Path, text: str) -> list[str]:
    modules = [module for module in imported(ast.parse(text)) if module.split(".")[0] in ("lib", "stages")]
    return [str(file) for module in modules for file in files_of(module) if layer(file) < layer(path)]


def threads(text: str) -> list[str]:
    """Modules that start threads, pools of them, or processes of Python's own."""
    modules = imported(ast.parse(text))
    return [name for name in modules if any(name == start or name.startswith(f"{start}.") for start in THREADS)]


def test_imports_point_down_and_start_no_threads():
    assert not [str(path) for path in FILES if layer(path) < 0 and path != Path("lib/__init__.py")], "of no layer"
    texts = {path: (ROOT / path).read_text() for path in FILES}
    assert not {str(path): found for path, text in texts.items() if (found := upward(path, text) + threads(text))}


def test_what_is_forbidden_would_be_noticed():
    assert upward(Path("lib/views/crop.py"), "def f():\n    from lib.core.loop import pretrain\n")
    assert not upward(Path("lib/core/loop.py"), "import lib.views.crop\n")
    for line in ("import threading", "from concurrent.futures import ThreadPoolExecutor", "import asyncio as a"):
        assert threads(line)
    assert threads("from multiprocessing.pool import ThreadPool") and threads("import_module('_thread')")
    assert not threads("import torch\ntorch.set_num_threads(2)  # of torch's own, which hold no lock of Python's")


def test_no_loop_or_evaluation_names_a_method():
    methods = set(method_names())
    for path in FILES:
        if path.parts[1] in ("core", "evaluate", "views", "data", "runtime") or path.parts[0] == "stages":
            code = re.sub(r'""".*?"""|#.*', "", (ROOT / path).read_text(), flags=re.DOTALL)
            named = set(re.findall(r"\w+", code)) & methods
            assert not named, f"{path} names {named}"
