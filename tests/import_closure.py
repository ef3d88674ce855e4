"""Which files of the project a script imports, directly or through others; read from the source, not run."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Imported by every stage to refuse a bad params.yaml early; returns nothing, so it cannot change a result.
CHECK_ONLY = Path("lib/params/check.py")


def closure(start: Path) -> set[Path]:
    """The project's files that ``start`` needs, itself included, relative to the root."""
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found or path == CHECK_ONLY:
            continue
        found.add(path)
        waiting.extend(imported_files(path))
    return {path for path in found if has_code(path)}


def imported_files(path: Path) -> set[Path]:
    """Files of lib and stages that ``path`` names in any import statement, also inside functions."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            modules.add(node.module)
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {file for module in modules if module.split(".")[0] in ("lib", "stages") for file in _files(module)}


def _files(module: str) -> set[Path]:
    """The module's own file and the packages above it, as far as they exist."""
    parts = module.split(".")
    files = {Path(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)}
    files.add(Path(*parts).with_suffix(".py"))
    return {file for file in files if (ROOT / file).is_file()}


def has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    return any(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in ast.parse((ROOT / path).read_text()).body
    )
