"""Figures, reproducible to the byte: no dates, no random ids, no global matplotlib state."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#52606d"  # text and axes; becomes the page's own text colour in HTML
_STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "rl4rec",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-4, 6),
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Plot:
    """One figure: as an image for files and as SVG to be put inside HTML."""

    name: str
    title: str
    png: bytes
    svg: str


def render(name: str, title: str, draw: Callable[[Axes], None]) -> Plot:
    """Draw one figure; it is known by its name, and its title is what a screen reader says."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        draw(figure.subplots())
        return Plot(name, title, _png(figure, title), _svg(figure, name, title))


def _png(figure: Figure, title: str) -> bytes:
    heading = figure.suptitle(title, fontsize=10)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    heading.remove()
    return out.getvalue()


def _svg(figure: Figure, name: str, title: str) -> str:
    """An `<svg>` element for use inside a page: scales, takes the page's text colour, ids unique to the plot."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).replace(INK, "currentColor")
    text = text.replace("#ffffff", "var(--card, #ffffff)")  # hollow marks: what is behind them
    referenced = set(re.findall(r"#([\w-]+)\)?\"", text)) | set(re.findall(r"url\(#([\w-]+)\)", text))

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in referenced else ""

    text = re.sub(r' id="([\w.-]+)"', rename, text)
    text = re.sub(r'href="#([\w-]+)"', rf'href="#{name}-\1"', text)
    return re.sub(r"url\(#([\w-]+)\)", rf"url(#{name}-\1)", text)
