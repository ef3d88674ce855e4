"""Each stage tells DVC exactly what it imports, and imports point down only."""

import re
from pathlib import Path

import pytest

from lib.params.spec import load_yaml
from tests.examples import every_variant, study_params
from tests.import_closure import ROOT, closure, has_code, imported_files

PIPELINE = load_yaml(ROOT / "dvc.yaml")["stages"]
STUDY = study_params()
PARAMS = {**STUDY, "variants": every_variant()}
ENCODERS = [
    path.relative_to(ROOT)
    for path in (ROOT / "lib/encoders").glob("[a-z]*.py")
    if path.stem not in ("resnet", "small_maps")
]
# From the top. A module may import its own layer and those below.
LAYERS = [
    ["stages"],
    ["lib/side_by_side.py"],
    ["lib/plan.py"],
    ["lib/durations.py", "lib/forecast.py", "lib/shares.py"],
    ["lib/report", "lib/preset.py", "lib/offline_plots.py"],
    ["lib/evaluate"],
    ["lib/methods"],
    ["lib/core"],
    ["lib/losses"],
    ["lib/views"],
    ["lib/encoders"],
    ["lib/data"],
    [
        "lib/params",
        "lib/machine.py",
        "lib/files.py",
        "lib/seeds.py",
        "lib/errors.py",
        "lib/stage.py",
        "lib/tiles.py",
        "lib/workers.py",
    ],
]


def instances(variants: dict) -> list[tuple[str, str | None]]:
    return [
        (name, variant)
        for name, stage in PIPELINE.items()
        for variant in (variants if stage.get("foreach") == "${variants}" else [None])
    ]


def declared(name: str, variant: str | None) -> set[Path]:
    """The Python files that DVC watches for one stage, folders opened, slots filled."""
    stage = PIPELINE[name].get("do", PIPELINE[name])
    files: set[Path] = set()
    for dep in stage["deps"]:
        path = Path(re.sub(r"\$\{([^}]*)\}", lambda slot: fill(slot[1], variant), dep))
        if (ROOT / path).is_dir():
            files |= {file.relative_to(ROOT) for file in (ROOT / path).rglob("*.py")}
        elif path.suffix == ".py":
            assert (ROOT / path).is_file(), f"{name} depends on {path}, which does not exist"
            files.add(path)
    return {file for file in files if has_code(file)}


def fill(slot: str, variant: str | None) -> str:
    if slot in ("key", "item"):
        return str(variant)
    names = slot.split(".")
    value = PARAMS["variants"][variant] if names[0] == "item" else PARAMS[names[0]]
    for name in names[1:]:
        value = value[name]
    return value


def imported(name: str, variant: str | None, encoders: list[Path]) -> set[Path]:
    """What the stage imports, also by name: a method, its encoder."""
    files = closure(Path(f"stages/{name}.py"))
    if Path("lib/methods/__init__.py") in files:
        files |= closure(Path(f"lib/methods/{PARAMS['variants'][variant]['method']}.py"))
        files |= {file for encoder in encoders for file in closure(encoder)}
    return files


def chosen() -> list[Path]:
    return [Path(f"lib/encoders/{PARAMS['encoder']}.py")]


@pytest.mark.parametrize(("name", "variant"), instances(PARAMS["variants"]))
def test_a_stage_declares_what_it_imports(name, variant):
    missing = imported(name, variant, chosen()) - declared(name, variant)
    assert not missing, f"dvc.yaml: {name} imports but does not declare {sorted(map(str, missing))}"


@pytest.mark.parametrize(
    ("name", "variant"),
    instances([name for name, block in STUDY["variants"].items() if block["watch"]["loss"] == "ntxent"]),
)
def test_a_stage_declares_nothing_else(name, variant):
    """Of the study's models; another method may do without one of the files that those share."""
    idle = declared(name, variant) - imported(name, variant, ENCODERS)
    assert not idle, f"dvc.yaml: {name} declares but does not import {sorted(map(str, idle))}"


def test_every_script_is_a_stage():
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == set(PIPELINE)


def test_a_missing_declaration_would_be_noticed():
    seen = imported("pretrain", "joint", chosen())
    for path in ("lib/core/loop.py", "lib/losses/view_distance.py", "lib/methods/joint.py", "lib/encoders/resnet.py"):
        assert Path(path) in seen
    assert Path("lib/methods/dual.py") not in seen and Path("lib/losses/view_distance.py") not in imported(
        "pretrain", "simclr", chosen()
    )


def layer(path: Path) -> int:
    for height, names in enumerate(LAYERS):
        if any(path.is_relative_to(name) for name in names):
            return height
    raise AssertionError(f"{path} belongs to no layer")


def test_imports_point_down():
    for folder in ("lib", "stages"):
        for file in (ROOT / folder).rglob("*.py"):
            path = file.relative_to(ROOT)
            if path == Path("lib/__init__.py"):
                continue
            for other in imported_files(path):
                if has_code(other):
                    assert layer(other) >= layer(path), f"{path} imports {other}, which is above it"


def test_no_loop_or_evaluation_names_a_method():
    methods = {path.stem for path in (ROOT / "lib/methods").glob("[a-z]*.py")} - {"base", "export"}
    for folder in ("lib/core", "lib/evaluate", "stages", "lib/views", "lib/data"):
        for file in (ROOT / folder).rglob("*.py"):
            code = re.sub(r'""".*?"""|#.*', "", file.read_text(), flags=re.DOTALL)
            named = set(re.findall(r"\w+", code)) & methods
            assert not named, f"{file.relative_to(ROOT)} names {named}"
