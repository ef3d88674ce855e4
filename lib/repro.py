"""``dvc repro`` in a terminal: ``python -m lib repro``. The stages, their number and about how long each takes; DVC's
warnings and errors as they are, without its hints about git and dvc.lock.

DVC has no setting between all of its words and none, not even errors (``-q``), so its log is filtered here.
"""

import argparse
import logging
import re
import sys

from lib.params.experiment import parse_experiment
from lib.params.spec import PARAMS_FILE, load_yaml
from lib.plan import seconds, stages_of
from lib.runtime.progress import duration
from lib.runtime.stage import NAME

STAGE = re.compile(rf"(?:Running stage|Stage) '({NAME}(?:@{NAME})?)'(.*)", re.DOTALL)
HINTS = ("> ", "Updating lock file", "Generating lock file", "To track the changes", "To enable auto")


class Stages(logging.Filter):
    """Of DVC's words the stages, numbered, and what is no hint; ``expected``: seconds by stage, None where unknown."""

    def __init__(self, expected: dict[str, float | None]) -> None:
        super().__init__()
        self.expected, self.number = expected, 0

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage().strip()
        if found := STAGE.match(text):
            self.number += 1
            name, rest = found.groups()
            about = self.expected.get(name) if rest == ":" else None
            time = f", about {duration(about)}" if about else ""
            state = rest.removeprefix(":").strip() or "runs"
            record.msg, record.args = f"[{self.number} of {len(self.expected)}] {name} {state}{time}", ()
        return bool(text) and not text.startswith(HINTS)


def main(arguments: list[str]) -> None:
    about = "Run the pipeline as dvc repro does, and say which stage of how many runs."
    argparse.ArgumentParser(prog="python -m lib repro", description=about).parse_args(arguments)
    from dvc.cli import main as dvc

    raw = load_yaml(PARAMS_FILE)
    epochs = {name: params.epochs for name, params in parse_experiment(raw).variants.items()}
    stages = stages_of(load_yaml(PARAMS_FILE.with_name("dvc.yaml")), raw)
    words = Stages({stage.name: seconds(stage, epochs) for stage in stages})
    for handler in logging.getLogger("dvc").handlers:
        if handler.level == logging.INFO:
            handler.addFilter(words)
    sys.exit(dvc(["repro"]))
