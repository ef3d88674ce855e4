"""Set-up of ``dvc plots show`` without internet: ``python -m lib offline-plots``.

DVC's own page loads its chart library from the web. The page that ``plots.html_template`` in .dvc/config
names, .dvc/plots.html, loads it from a file beside itself instead. This writes that file from the
installed package vl-convert-python; git ignores it. Where it is missing the page says how to get it.
"""

import argparse
from pathlib import Path

from lib.runtime.errors import UserError
from lib.runtime.files import write_text

LIBRARY_FILE = Path(".dvc/vega.js")
VEGA_LITE = "v5.20"


def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that sets ``window.vegaEmbed`` and no other global but theirs."""
    try:
        from vl_convert import javascript_bundle
    except ImportError:
        raise UserError("vl-convert-python is not installed; run pip install -r requirements.txt") from None
    library = javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]  # its stub is wrong
    return f"(() => {{{library}}})();\n"


def main(arguments: list[str]) -> None:
    about = "Make the charts of dvc plots show work offline."
    argparse.ArgumentParser(prog="python -m lib offline-plots", description=about).parse_args(arguments)
    write_text(LIBRARY_FILE, chart_library())
