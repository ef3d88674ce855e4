"""Set-up of ``dvc plots show`` without internet: ``python -m lib.offline_plots``.

DVC's own page loads its chart library from the web. The page that ``plots.html_template`` in .dvc/config
names, .dvc/plots.html, loads it from a file beside itself instead. This writes that file from the
installed package vl-convert-python; git ignores it. Where it is missing the page says how to get it.
"""

import sys
from pathlib import Path

from lib.runtime.errors import UserError
from lib.runtime.files import write_text

LIBRARY_FILE = Path(".dvc/vega.js")
VEGA_LITE = "v5.20"


def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that sets ``window.vegaEmbed`` and no other global but theirs.

    Raises:
        UserError: vl-convert-python is missing.
    """
    try:
        from vl_convert import javascript_bundle
    except ImportError:
        raise UserError("vl-convert-python is not installed; run pip install -r requirements.txt") from None
    return f"(() => {{{javascript_bundle(vl_version=VEGA_LITE)}}})();\n"


def main() -> None:
    try:
        write_text(LIBRARY_FILE, chart_library())
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
