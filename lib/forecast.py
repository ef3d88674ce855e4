"""What ``dvc repro`` would run, stage by stage, without running it and without taking DVC's locks.

DVC's own dry run looks at each stage alone. Here the stages are judged in the order in which they would
run, and what one leaves behind is handed on: the outputs of a stage that runs are not known yet, those of
a stage that the run cache restores are. A change that is not yet made is laid over params.yaml in memory.
Nothing is written but DVC's own scratch files: its folder .dvc/tmp, and its memory of hashes outside the project.
"""

import io
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from lib.params.spec import PARAMS_FILE
from lib.runtime.errors import UserError


class Fate(StrEnum):
    UP_TO_DATE = "up to date"
    RESTORED = "restored"  # from the run cache, or from DVC's cache where only outputs are missing
    RUNS = "runs"
    RUNS_OR_RESTORED = "runs or is restored"  # changed for certain, but the run cache can only be asked later
    DEPENDS = "runs unless its inputs come out the same"


@dataclass(frozen=True)
class Step:
    """One stage. ``why`` is what changed in it, ``causes`` the stages whose outputs are, or may be, new to it.

    ``after`` are the stages directly before it that are not up to date. ``outputs`` maps paths to the MD5 recorded in
    dvc.lock, None for none. ``recorded`` holds the parameters of the last run, those of the stages before it included.
    """

    stage: str
    fate: Fate
    why: tuple[str, ...]
    causes: tuple[str, ...]
    after: tuple[str, ...]
    outputs: dict[str, str | None]
    recorded: dict[str, Any]

    @property
    def group(self) -> str:
        """``"pretrain"`` of ``"pretrain@joint"``."""
        return self.stage.rpartition("@")[0] or self.stage

    @property
    def key(self) -> str | None:
        """``"joint"`` of ``"pretrain@joint"``; None for a stage that there is once."""
        return self.stage.rpartition("@")[2] if "@" in self.stage else None


def forecast(params: str | None = None, targets: Iterable[str] = ()) -> list[Step]:
    """Every stage that ``dvc repro targets`` would look at, in its order, those that are up to date included.

    Args:
        params: the text to read in place of params.yaml; None reads the file.
        targets: stages, or names of groups such as ``pretrain``; none means the whole pipeline.

    Raises:
        UserError: not a DVC project, an unknown target, a pipeline that DVC cannot read, a missing input.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo(fs=_overlaid(params)) as repo:
            graph = get_active_graph(repo.index.graph)
            stages = collect_stages(repo, list(targets) or ["dvc.yaml"])
            judge = _Judge(repo, graph)
            return [judge.step(stage) for stage in plan_repro(graph, stages)]
    except DvcException as error:
        raise UserError(" ".join(str(error).split())) from None
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} vanished while it was read, by a stage at work perhaps; ask again") from None


def _overlaid(params: str | None) -> Any:
    """The local file system, on which params.yaml reads as ``params``."""
    from dvc.fs import LocalFileSystem

    class Overlaid(LocalFileSystem):
        """DVC reads parameters and fills dvc.yaml's slots through ``open``."""

        def open(self, path: Any, mode: str = "r", **options: Any) -> Any:
            if params is None or "w" in mode or os.path.abspath(path) != str(PARAMS_FILE.absolute()):
                return super().open(path, mode, **options)
            return io.BytesIO(params.encode()) if "b" in mode else io.StringIO(params)

    return Overlaid()


class _Judge:
    """Judges stages one after another; each must come after those that it depends on."""

    def __init__(self, repo: Any, graph: Any) -> None:
        self.repo, self.graph = repo, graph
        self.steps: dict[str, Step] = {}
        self.open: dict[str, str] = {}  # path of an output that is not known yet -> its stage
        self.restored: dict[str, tuple[str, Any]] = {}  # path of an output -> its stage, DVC's record of it

    def step(self, stage: Any) -> Step:
        upstream = [self.steps[other.addressing] for other in self.graph.successors(stage)]
        recorded = self._recorded(stage)
        outputs = {out.def_path: out.hash_info.value for out in stage.outs}
        fate, why, causes = self._fate(stage)
        after = tuple(step.stage for step in upstream if step.fate != Fate.UP_TO_DATE)
        step = Step(stage.addressing, fate, tuple(why), tuple(dict.fromkeys(causes)), after, outputs, recorded)
        self.steps[step.stage] = step
        return step

    def _recorded(self, stage: Any) -> dict[str, Any]:
        """The parameters behind the stage's last run, as far as dvc.lock still tells."""
        found = {}
        read = {dep.fs_path: dep.hash_info for dep in stage.deps}
        for other in self.graph.successors(stage):
            past = self.steps[other.addressing].recorded
            same = all(read[out.fs_path] == out.hash_info for out in other.outs if out.fs_path in read)
            found |= past if same else dict.fromkeys(past, "since replaced")
        return found | _parameters(stage)

    def _fate(self, stage: Any) -> tuple[Fate, list[str], list[str]]:
        """What happens, what changed in the stage itself, and which stages move it."""
        fresh = not any(dep.hash_info for dep in stage.deps)
        awaited, moved, changed = [], [], []
        for dep in () if stage.frozen else stage.deps:
            unknown = [name for path, name in self.open.items() if _overlap(path, dep.fs_path)]
            awaited += unknown
            if not unknown and (differences := self._settle(stage, dep)):
                origins = [name for path, (name, _) in self.restored.items() if _overlap(path, dep.fs_path)]
                moved += origins
                changed += [] if origins else differences
        if stage.changed_stage():
            changed.append("its command changed")
        lost = [_lost(out) for out in stage.outs if out.status()]
        own = ["has not run yet"] if fresh else changed + lost
        causes = awaited + moved
        if not (own or causes):
            return Fate.UP_TO_DATE, own, causes
        if not awaited and self._restore(stage, same=not (changed or moved)):
            return Fate.RESTORED, own, causes
        self.open |= {out.fs_path: stage.addressing for out in stage.outs}
        if not (own or moved):
            return Fate.DEPENDS, own, causes
        before = awaited and tuple(stage.cmd.split()) in self._have_run
        return Fate.RUNS_OR_RESTORED if before else Fate.RUNS, own, causes

    def _settle(self, stage: Any, dep: Any) -> list[str]:
        """Set ``dep`` to what it will be in its stage's turn; what differs from the stage's last run."""
        from dvc.dependency import ParamsDependency

        before = dep.hash_info
        if isinstance(dep, ParamsDependency):
            dep.hash_info = dep.get_hash()
            return list(_differences(before.value or {}, dep.hash_info.value))
        inside = {path: out for path, (_, out) in self.restored.items() if _overlap(path, dep.fs_path)}
        if dep.fs_path in inside:
            dep.hash_info, dep.meta = inside[dep.fs_path].hash_info, inside[dep.fs_path].meta
        elif inside:
            dep.hash_info = self._folder_hash(dep, inside)
        elif not dep.exists:
            raise UserError(f"{stage.addressing} needs {dep.def_path}, which does not exist")
        else:
            dep.save()
        return [] if dep.hash_info == before else [f"{dep.def_path} {'changed' if before else 'is new to it'}"]

    def _folder_hash(self, dep: Any, inside: dict[str, Any]) -> Any:
        """The hash of a folder when some of its files will have been restored."""
        from dvc_data.hashfile.build import build
        from dvc_data.hashfile.tree import Tree

        files = {}
        if dep.exists:
            tree = build(dep.local_cache, dep.fs_path, dep.fs, dep.hash_name, ignore=dep.dvcignore, dry_run=True)[2]
            files = {key: (meta, digest) for key, meta, digest in tree}
        files |= {dep.fs.relparts(path, dep.fs_path): (out.meta, out.hash_info) for path, out in inside.items()}
        future = Tree()
        for key, value in files.items():
            future.add(key, *value)
        future.digest()
        return future.hash_info

    def _restore(self, stage: Any, same: bool) -> bool:
        """Whether DVC has the outputs already; if so, notes them. ``same``: the inputs are those of the last run."""
        from dvc.stage.serialize import to_single_stage_lockfile

        locked = same and all(out.hash_info for out in stage.outs)
        record = to_single_stage_lockfile(stage) if locked else self._run_cache(stage)
        if record is None:
            return False
        past = self.repo.stage_cache._create_stage(record, wdir=stage.wdir)
        if not past.outs_cached():
            return False
        for out in past.outs:
            if out.hash_info.isdir:  # no stage reads a part of one so far: what it will hold is not looked up
                self.open[out.fs_path] = stage.addressing
            else:
                self.restored[out.fs_path] = (stage.addressing, out)
        return True

    def _run_cache(self, stage: Any) -> dict[str, Any] | None:
        """The newest entry of the run cache for these inputs; a stage with uncached plain outputs has none."""
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.serialize import to_single_stage_lockfile
        from dvc.utils.serialize import load_yaml

        key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
        entries = sorted(Path(self.repo.stage_cache.cache_dir, key[:2], key).glob("*"), key=os.path.getmtime)
        return load_yaml(entries[-1]) if entries else None

    @cached_property
    def _have_run(self) -> set[tuple[str, ...]]:
        """The commands of which the run cache holds any run."""
        return {_command(path) for path in Path(self.repo.stage_cache.cache_dir).glob("*/*/*")}


def _command(entry: Path) -> tuple[str, ...]:
    """The words of a run cache entry's command, with which it begins; YAML may fold it over several lines."""
    return tuple(entry.read_text(errors="replace").partition("\ndeps:")[0].removeprefix("cmd:").split())


def _parameters(stage: Any) -> dict[str, Any]:
    """The parameters of a stage's last run."""
    from dvc.dependency import ParamsDependency

    return {
        key: value
        for dep in stage.deps
        if isinstance(dep, ParamsDependency)
        for key, value in (dep.hash_info.value or {}).items()
    }


def _lost(out: Any) -> str:
    words = {"deleted": "is missing", "modified": "was changed by hand", "not in cache": "is not in the cache"}
    state = next(iter(out.status().values()))
    return f"{out.def_path} {words.get(state, state)}"


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """``"gamma 0.01 -> 0.1"`` for each number or text that differs, blocks opened."""
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key} is new" if key not in old else f"{prefix}{key} {before} -> {after}"


def _overlap(path: str, other: str) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    return Path(path).is_relative_to(other) or Path(other).is_relative_to(path)
