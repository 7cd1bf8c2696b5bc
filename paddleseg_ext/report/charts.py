"""Curves as SVG that takes the page's own colours, light or dark."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

Curve = Sequence[tuple[float, float]]
# Seen on white and on black alike.
COLOURS = ("#2f7ed8", "#f28f43", "#2fa866", "#a05cd6", "#d84b4b", "#8a8d91", "#c2a019", "#2ba8b0")
_INK = "#010203"  # stands for the page's text colour until the drawing is done


def curves(title: str, lines: Mapping[str, Curve], colours: Mapping[str, str], *, wide: bool = False) -> str:
    """An inline `<svg>` with one line for each name.

    Lines of one point only are drawn as points. Values over several powers of ten get a logarithmic axis.
    """
    inked = ("text.color", "xtick.color", "ytick.color", "axes.edgecolor", "axes.labelcolor", "grid.color")
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9, **dict.fromkeys(inked, _INK)}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8.4, 3.2) if wide else (4.1, 2.4), layout="constrained")
        axes = figure.add_subplot()
        for name, points in lines.items():
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colours[name], linewidth=1.5, marker="o" if len(points) < 30 else None, markersize=3)
        values = [y for points in lines.values() for _, y in points]
        if min(values) > 0 and max(values) > 100 * min(values):
            axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        drawn = io.StringIO()
        figure.savefig(
            drawn, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = drawn.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")
