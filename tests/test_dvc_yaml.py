"""dvc.yaml: each stage declares the code that can change its result; DVC does not look into imports itself."""

import ast
import re

import pytest

from lib.params.spec import load_yaml
from lib.resolve import OWN_CODE, code_digests
from tests.examples import ROOT, pretraining
from tests.test_layers import imported as modules_of

PIPELINE = load_yaml(ROOT / "dvc.yaml")["stages"]
# What cannot change a result: errors, whole files, the frame of a stage, progress, checks of the whole params.yaml.
NO_RESULT = {"lib/runtime/errors.py", "lib/runtime/files.py", "lib/runtime/stage.py", "lib/runtime/progress.py",
             "lib/params/experiment.py", "lib/params/spec.py", "lib/resolve.py"}  # fmt: skip
# Typed from params.yaml by every stage; a stage declares those whose defaults it could meet.
TYPES = {"lib/params/evaluation.py", "lib/params/pretraining.py"}
BY_VARIANT = {"pretrain", "linear", "memory", "embed"}  # the variant's JSON, a dependency, stands for its own code


def imported(start: str) -> set[str]:
    """The project's files that ``start`` needs, directly or through others, also inside functions."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found or path in NO_RESULT:
            continue
        found.add(path)
        for name in modules_of(ast.parse((ROOT / path).read_text())):
            places = [name.replace(".", "/") + end for end in (".py", "/__init__.py")]
            waiting += [place for place in places if place.startswith(("lib/", "stages/")) and (ROOT / place).is_file()]
    return {path for path in found if not path.endswith("__init__.py")}


def declared(stage: str) -> set[str]:
    """The Python files that DVC watches for a stage, folders opened."""
    entry = PIPELINE[stage].get("do", PIPELINE[stage])
    files: set[str] = set()
    for dep in entry["deps"]:
        if dep.startswith(("lib", "stages")):
            assert (ROOT / dep).exists(), f"{stage} depends on {dep}, which does not exist"
            found = (ROOT / dep).rglob("*.py") if (ROOT / dep).is_dir() else [ROOT / dep]
            files |= {path.relative_to(ROOT).as_posix() for path in found}
    return files


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_declares_the_code_that_can_change_its_result(stage):
    needed = imported(f"stages/{stage}.py") - TYPES
    if stage == "resolve":  # of the images it reads the counts, and of the machine the number of processes
        needed = {path for path in needed if not path.startswith(("lib/data", "lib/runtime"))}
    if stage in BY_VARIANT:
        assert "data/variants/${key}.json" in PIPELINE[stage]["do"]["deps"]
        needed = {path for path in needed if not path.startswith(OWN_CODE) or path == "lib/methods/export.py"}
    missing = needed - declared(stage)
    assert not missing, f"dvc.yaml: {stage} imports but does not declare {sorted(missing)}"


def test_training_does_not_depend_on_evaluation_beside_its_monitor():
    watched = declared("pretrain")
    evaluation = {path for path in watched if path.startswith(("lib/evaluate", "lib/report"))}
    assert evaluation <= imported("lib/evaluate/monitor.py") and "lib/params/evaluation.py" not in watched
    views = {path for path in watched if path.startswith("lib/views")}
    assert views <= imported("stages/pretrain.py") | imported("lib/methods/cmc.py") | {"lib/views/__init__.py"}


def test_a_variants_digests_cover_its_own_code():
    for variant in ("simclr", "byol", "cpc", "patch_filters"):
        params = pretraining(variant)
        own = {path for path in imported(f"lib/methods/{params.method}.py") if path.startswith(OWN_CODE)}
        assert own <= code_digests(params).keys()
    assert "lib/encoders/resnet.py" in code_digests(pretraining("simclr", encoder="resnet18"))
    assert "lib/encoders/resnet.py" not in code_digests(pretraining("simclr", encoder="small"))
    assert "lib/methods/vicreg.py" not in code_digests(pretraining("simclr"))


def test_every_script_is_a_stage_and_every_name_is_quoted():
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - {"lib"} == set(PIPELINE)
    for stage in PIPELINE.values():
        cmd = stage.get("do", stage)["cmd"]
        assert re.fullmatch(r"python -m stages\.\w+( '\$\{(key|item)\}')?", cmd)


def test_a_missing_declaration_would_be_noticed():
    assert {"lib/core/loop.py", "lib/evaluate/knn.py", "lib/views/augment.py"} <= imported("stages/pretrain.py")
