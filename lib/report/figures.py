"""What all pictures share: colors, fonts, one kind of line, and how a picture is written."""

import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lib.runtime.files import write_bytes

# Okabe and Ito's colors, told apart with any color vision, without the yellow that fades on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
GRAY = "#7F7F7F"  # of what was not trained
MARKED = 25  # markers on a long line
POINT: Any = {"markersize": 6.5, "elinewidth": 1.3, "capsize": 2}  # with its interval
# Fonts that have what matplotlib's own lacks, of which those that are installed are used.
FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans", "Microsoft YaHei")
STYLE: Any = {
    "font.size": 10,
    "figure.dpi": 130,
    "savefig.dpi": "figure",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
}


@functools.cache
def _fonts() -> list[str]:
    """matplotlib's font, and behind it those for names in other scripts."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]


def readable(names: Iterable[str]) -> list[str]:
    """The names; one with a character that no installed font has, by the characters' codes."""
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in _fonts()]

    def drawn(name: str) -> bool:
        return all(any(font.get_char_index(ord(char)) for font in fonts) for char in name)

    return [name if drawn(name) else name.encode("ascii", "backslashreplace").decode() for name in names]


def save_figure(path: Path, draw: Callable[..., Figure], *arguments: Any) -> None:
    """Draw and write a PNG whose bytes depend on its content alone; 256 colors take a third of the room of all."""
    drawn = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "font.family": _fonts()}):
        figure = draw(*arguments)
        figure.savefig(drawn, format="png", metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB")
    images = [numpy.asarray(image.get_array()) for axes in figure.axes for image in axes.images]
    if all(image.ndim == 2 for image in images):  # no true colors in it
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    write_bytes(path, lambda file: picture.save(file, format="PNG", optimize=True))


def grid(count: int, in_one_line: int = 1) -> tuple[int, int]:
    """Lines and columns of ``count`` panels, as square as can be; up to ``in_one_line`` of them stand in one line."""
    columns = count if count <= in_one_line else math.ceil(math.sqrt(count))
    return -(-count // columns), columns


def look(number: int) -> dict[str, Any]:
    """Color, marker and dash of the curve or point of this number; 49 pairs of color and marker differ."""
    marker = MARKERS[(number + number // len(COLORS)) % len(MARKERS)]
    return {"color": COLORS[number % len(COLORS)], "marker": marker, "linestyle": DASHES[number % len(DASHES)]}


def draw_line(panel: Axes, x: Any, y: Any, look: Mapping[str, Any], label: str) -> None:
    """A curve that color, marker and dash tell from the others."""
    panel.plot(x, y, label=label, linewidth=1.8, markersize=4.5, markevery=max(1, len(x) // MARKED), **look)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.25)
