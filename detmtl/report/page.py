"""One self-contained HTML page of text, tables, plots and pictures.

Nothing is loaded from anywhere: style, plots (SVG) and pictures (JPEG) are inside the file. It
follows the reader's light or dark mode, and plots do too: what is black in them is written in the
page's text color. Needs Jinja2 and matplotlib (`pip install 'detmtl[report]'`).
"""

import base64
import hashlib
import io
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image

from detmtl.silver.parts import atomic_write
from detmtl.structures.errors import missing_package

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#3b82c4", "#dd7e14", "#2a9d83", "#c8515f", "#8b6cc1", "#8a8f98")
"""For curves and bars, in this order: told apart on light and on dark, also by the color-blind."""

LINE = 60
"""Words of a table's cell with more letters go on in further lines."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading; "": none, and no entry in the page's list of contents.
        blocks: what stands in it. A plain str is a paragraph; what the functions here return
            (`table`, `figure`, `note` ...) stands as it is.
    """

    title: str
    blocks: "Sequence[str | Markup]"

    @property
    def anchor(self) -> str:
        """Returns the section's place in the page, for links to it."""
        return "-".join(re.findall(r"\w+", self.title.lower())) or "top"


class Shaded(NamedTuple):
    """A table's cell with a tint.

    Attributes:
        text: of the cell.
        share: in [0, 1], how strong the tint is.
    """

    text: str
    share: float


def available() -> bool:
    """Returns whether the packages that pages need are installed."""
    return all(find_spec(name) is not None for name in ("jinja2", "matplotlib"))


def require() -> None:
    """Raises what `page` would, before the work that comes first.

    Raises:
        InputError: a package is not installed.
    """
    for module, package in (("jinja2", "Jinja2"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise missing_package(package, "report", "an HTML page")


def page(title: str, sections: Sequence[Section], footer: str = "") -> str:
    """Returns a whole HTML page.

    Raises:
        InputError: a package is not installed.
    """
    template = Path(__file__).with_name("page.html").read_text("utf-8")
    return _jinja().from_string(template).render(title=title, sections=sections, footer=footer)


def write_page(path: Path, html: str) -> None:
    """Writes a page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, html.encode())


def table(
    rows: Iterable[Sequence[object]],
    columns: Sequence[str],
    left: Sequence[str] = (),
    total: bool = False,
) -> "Markup":
    """Returns a table that scrolls sideways where the screen is narrow.

    Args:
        rows: one cell for each column: text, a number, a `Shaded`, or None for "nothing to say".
        columns: the headings.
        left: headings of columns of words, which stand at the left; the first does anyway.
        total: whether the last row sums up the others.
    """
    at_left = [i == 0 or name in left for i, name in enumerate(columns)]
    head = [
        _markup('<th class="left">{}</th>' if first else "<th>{}</th>", name)
        for name, first in zip(columns, at_left, strict=True)
    ]
    lines = [
        _joined(_cell(cell, first) for cell, first in zip(row, at_left, strict=True))
        for row in rows
    ]
    body = [_markup("<tr>{}</tr>\n", line) for line in lines]
    if total and lines:
        body[-1] = _markup('<tr class="total">{}</tr>\n', lines[-1])
    html = '<div class="scroll"><table><thead><tr>{}</tr></thead>\n<tbody>{}</tbody></table></div>'
    return _markup(html, _joined(head), _joined(body))


def note(text: str, kind: Literal["plain", "good", "warn", "bad"] = "plain") -> "Markup":
    """Returns a sentence that is set off from the rest."""
    return _markup('<div class="note {}">{}</div>', kind, text)


def numbers(values: Sequence[tuple[str, str]]) -> "Markup":
    """Returns a few large numbers, each (value, what it is)."""
    cells = [_markup("<div><b>{}</b><span>{}</span></div>", *value) for value in values]
    return _markup('<div class="numbers">{}</div>', _joined(cells))


def axes(
    width: float = 7.0, height: float = 3.4, rows: int = 1, columns: int = 1
) -> "tuple[Figure, list[Axes]]":
    """Returns a figure of `width` x `height` inches and its rows x columns axes, in the page's style."""
    require()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    made = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for each in made:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, color="#8a8f98", alpha=0.25, linewidth=0.6)
        each.set_axisbelow(True)
        each.set_prop_cycle(color=list(COLORS))
    return figure, made


def curve(i: int) -> tuple[str, str]:
    """Returns form and color of curve `i` of a plot; where there are more curves than colors, colors come
    again with other dots and dashes."""
    forms = ("o-", "s--", "^:")
    return forms[i // len(COLORS) % len(forms)], COLORS[i % len(COLORS)]


def verdict_dot(ax: "Axes", x: float, y: float, color: str, sure: bool) -> None:
    """Draws a mean; hollow where one cannot tell, as not everybody, nor every printer, tells colors apart."""
    ax.plot(x, y, "o", color=color, markerfacecolor=color if sure else "#ffffff", markersize=5)


def figure(fig: "Figure", caption: str = "") -> "Markup":
    """Returns a matplotlib figure as SVG inside the page.

    Black in it takes the page's text color and white the page's background, so that it reads in dark
    mode too. Equal figures give equal text.
    """
    require()
    from markupsafe import Markup
    from matplotlib import rc_context

    _show_dollars(fig)
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "detmtl"}), warnings.catch_warnings():
        # text stays text, which the reader's own fonts show
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        fig.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # Names of XML are of no use inside HTML, and a style there would hold for the whole page.
    svg = re.sub(
        r'<metadata>.*?</metadata>|<style type="text/css">.*?</style>', "", svg, flags=re.S
    )
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = svg.replace("#000000", "currentColor").replace("#ffffff", "var(--page)")
    # Several figures stand in one page, whose ids must differ.
    own = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}", svg)
    return _figure(Markup(svg), caption, "plot")


def short_name(name: str, most: int = 32) -> str:
    """Returns a name for a plot, of at most `most` letters, of which Chinese ones count as two: a long one
    without its middle, since it would leave no room to draw in. Tables beside have it whole."""
    wide = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name]
    if sum(wide) <= most:
        return name
    head, tail = len(name), 0
    while sum(wide[: head - 1]) > 2 * most // 3 - 1:
        head -= 1
    while sum(wide[len(name) - tail - 1 :]) <= most // 3:
        tail += 1
    return f"{name[: head - 1]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - tail :]}"


def _show_dollars(fig: "Figure") -> None:
    """Has names shown as they are: matplotlib takes what is between two `$` for a formula, and fails where it
    is none. Powers of ten on an axis are formulas of its own, and stay."""
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    own = {
        text
        for ax in fig.axes
        for axis in (ax.xaxis, ax.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatter)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for text in (tick.label1, tick.label2)
    }
    for text in fig.findobj(Text):
        if isinstance(text, Text) and text not in own:
            text.set_parse_math(False)


def picture(image: np.ndarray, caption: str = "", longest: int = 480) -> "Markup":
    """Returns a picture (H, W, 3) uint8 RGB, made smaller where its longer side exceeds `longest` pixels."""
    small = Image.fromarray(image)
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    data = base64.b64encode(out.getvalue()).decode()
    html = '<img alt="{}" width="{}" height="{}" src="data:image/jpeg;base64,{}">'
    return _figure(_markup(html, caption, *small.size, data), caption, "photo")


def gallery(pictures: "Sequence[Markup]", wide: bool = False) -> "Markup":
    """Returns pictures side by side, as many as the screen is wide for; wide ones below each other."""
    name = "gallery wide" if wide else "gallery"
    return _markup('<div class="{}">{}</div>', name, _joined(pictures))


def _figure(inside: "Markup", caption: str, kind: str) -> "Markup":
    below = _markup("<figcaption>{}</figcaption>", caption) if caption else ""
    return _markup('<figure class="{}">{}{}</figure>', kind, inside, below)


def _cell(cell: object, at_left: bool) -> "Markup":
    if isinstance(cell, Shaded):
        share = f"{cell.share:.3f}"
        return _markup('<td class="shaded" style="--share:{}">{}</td>', share, cell.text)
    if cell is None or (isinstance(cell, float) and cell != cell):
        cell = "\N{EN DASH}"
    if not at_left:
        return _markup("<td>{}</td>", cell)
    return _markup('<td class="{}">{}</td>', "left long" if len(str(cell)) > LINE else "left", cell)


def _joined(parts: "Iterable[Markup]") -> "Markup":
    from markupsafe import Markup

    return Markup("").join(parts)


def _markup(html: str, *values: object) -> "Markup":
    """Returns `html` with `values`, escaped unless they are HTML already, at its braces."""
    require()
    from markupsafe import Markup

    return Markup(html).format(*values)


def _jinja() -> "Environment":
    require()
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
