"""Puts the page together: headline, tables with legends, charts, and as many latents as its size allows."""

import json
import re
from pathlib import Path
from typing import Any

import numpy
import pandas
from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.resources import Resources
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lib.params.experiment import Experiment
from lib.report import tables
from lib.report.page import charts, explorer
from lib.report.records import read_record, replicates
from lib.runtime.files import size, write_text
from lib.runtime.progress import StepProgress

MOST_BYTES = 8_000_000
HERE = Path(__file__).parent


def write_report(experiment: Experiment, images: numpy.ndarray, root: Path = Path()) -> list[str]:
    """Write report.html; ``images``: those embedded, uint8 [M, 3, S, S]. Returns the latents that did not fit."""
    records = [read_record(variant, root) for variant in experiment.variants]
    groups = replicates(records)
    frame = tables.result_rows(records)
    latents = tables.latent_rows(tables.summary(frame))
    shown, coordinates = explorer.read_planes(groups, root)
    labeled = bool(len(shown["classes"]))
    classes = explorer.class_looks(shown["classes"].tolist() or ["image"])
    points = {
        "labels": explorer.encode(shown["labels"].clip(0)),  # without labels all are of one kind
        "indices": explorer.encode(shown["indices"]),
        "classes": classes,
        "kind": "test image" if labeled else "image",
    }
    sections = {
        "plane": [charts.plane_chart(groups, latents)] if labeled else [],
        "accuracy": [charts.accuracy_chart(groups, latents)] if labeled else [],
        "dose": charts.dose_charts(groups, latents),
        "curves": charts.curve_charts(groups),
        "explorer": charts.explorer_charts(classes, len(shown["labels"])),
    }
    sheet, tile = explorer.thumbnails(images[shown["indices"]])
    document = Document()
    for chart in (chart for section in sections.values() for chart in section):
        document.add_root(chart)
    content: dict[str, Any] = {
        "title": tables.title(frame),
        "most": size(MOST_BYTES),
        "units": tables.units(frame).capitalize(),
        "lines": charts.LINES,
        "variants": len(groups),
        "seeds": max(map(len, groups.values())),
        "tables": sortable_tables(frame),
        "sections": {name: [f"chart-{chart.id}" for chart in section] for name, section in sections.items()},
        "points": points,
        "looks": explorer.MARKERS,
        "sheet": {"uri": explorer.webp(sheet), "columns": sheet.width // tile},
        "document": in_script(serialize_json(document.to_json(deferred=False))),
        "bokeh": Markup(Resources(mode="inline", components=["bokeh"]).render_js()),
        "script": Markup((HERE / "page.js").read_text()),
    }
    names = explorer.latent_names(coordinates)
    # the page without any latent, and with all names of those left out, is what the others have to fit beside
    room = MOST_BYTES - len(render(**content, planes=[], left_out=names).encode())
    fitting = []
    with StepProgress("report: latents", len(names)) as progress:
        for plane in explorer.planes(coordinates, shown["indices"], root):
            room -= len(json.dumps(plane)) + len(", ")
            if room < 0:
                break
            fitting.append(plane)
            progress.advance()
    left_out = names[len(fitting) :]
    write_text(root / "report.html", render(**content, planes=fitting, left_out=left_out))
    return left_out


def render(**content: Any) -> str:
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return environment.get_template("page.html").render(content)


def in_script(text: str) -> Markup:
    """JSON as it can stand in a script element."""
    return Markup(text.replace("<", "\\u003c"))


def sortable_tables(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    """Each of `lib.report.tables.sections`: caption, remark, columns with their legends, and rows of text and value."""
    known = legends(Path(tables.LEGEND).read_text())
    return [
        {
            "caption": caption,
            "about": about,
            "columns": [{"name": name, "legend": column_legend(name, known)} for name in columns.values()],
            "rows": [
                [{"text": text, "value": "" if pandas.isna(value) else value} for text, value in zip(texts, values)]
                for texts, values in zip(tables.cells(rows, columns), rows[list(columns)].to_numpy(object))
            ],
        }
        for caption, about, rows, columns in tables.sections(frame)
    ]


def legends(page: str) -> dict[str, str]:
    """What a page says about each term that one of its list items begins with, as plain text."""
    items = re.findall(r"^- (\*\*(.+?)\*\*.+(?:\n  .+)*)", page, re.MULTILINE)
    return {term: re.sub(r"\*\*|`|\[|\]\([^)]*\)", "", re.sub(r"\s+", " ", item)) for item, term in items}


def column_legend(name: str, known: dict[str, str]) -> str:
    """All that is known about the words with which a column's name begins or ends; empty if nothing is."""
    words = {"n": "replicates"}.get(name, name.lower())
    told = [term for term in known if words.startswith(term.lower()) or words.endswith(term.lower())]
    return " ".join(known[term] for term in told)
