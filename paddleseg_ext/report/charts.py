"""Charts as inline SVG in the page's own colours, light or dark; a pointer on a point shows its value."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Curve = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 360, 212  # of the drawing; on the page it takes the width that there is
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 36
_MOST_DOTS = 40  # a line of more points is drawn without dots


@dataclass(frozen=True)
class Spot:
    """A model in `scatter`: x, y, and `size`, the area of its circle against the others'."""

    x: float
    y: float
    size: float


@dataclass(frozen=True)
class _Axis:
    """Values to places between `start` and `end` of the drawing, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values within the axis, three to six."""
        if self.is_log and self.high >= 10 * self.low:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1.0, 2.0, 5.0) if last - first < 3 else (1.0,)
            decades = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [value for value in decades if self.low <= value <= self.high]
        raw = (self.high - self.low) / 6
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * 0.999)
        return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def curves(lines: Mapping[str, Curve], colours: Mapping[str, str], what: str, *, mark_best: bool = False) -> str:
    """One line for each name over iterations.

    Values that span more than two powers of ten get a logarithmic axis. `what` names the values for those who do not see
    the drawing; `mark_best` rings each line's highest point.
    """
    points = [point for line in lines.values() for point in line]
    x = _axis([p[0] for p in points], _LEFT, _WIDTH - _RIGHT, is_log=False)
    values = [p[1] for p in points]
    y = _axis(values, _HEIGHT - _BOTTOM, _TOP, is_log=min(values) > 0 and max(values) > 100 * min(values))
    drawn = _grid(x, y, "iteration", _plain, _plain)
    for name, line in lines.items():
        colour = colours[name]
        places = [(x.place(a), y.place(b)) for a, b in line]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        best = max(range(len(line)), key=lambda i: line[i][1]) if mark_best else None
        for number, ((a, b), (iteration, value)) in enumerate(zip(places, line, strict=True)):
            seen = len(line) <= _MOST_DOTS or number == best
            said = f"{name}, iteration {_plain(iteration)}: {value:.4g}"
            shape = f'r="{4 if number == best else 2.4}" fill="{colour}"' if seen else 'r="3" fill="transparent"'
            ring = ' stroke="var(--ground)" stroke-width="1.5"' if number == best else ""
            drawn.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" {shape}{ring}><title>{escape(said)}</title></circle>')
    return _svg(drawn, f"{what} over iterations: {', '.join(lines)}")


def scatter(spots: Mapping[str, Spot], colours: Mapping[str, str], x_title: str, change: Sequence[str] = ()) -> str:
    """A circle for each name, x logarithmic; `change` are two names that an arrow leads from and to."""
    x = _axis([s.x for s in spots.values()], _LEFT, _WIDTH - _RIGHT, is_log=True, room=0.35)
    y = _axis([s.y for s in spots.values()], _HEIGHT - _BOTTOM, _TOP, is_log=False, room=0.22)
    drawn = _grid(x, y, x_title, _plain, _plain)
    largest = max(s.size for s in spots.values())
    places = {name: (x.place(s.x), y.place(s.y)) for name, s in spots.items()}
    if change:
        (a, b), (c, d) = (places[name] for name in change)
        drawn.append(f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}" class="change"/>')
    lowest = 0.0
    for name in sorted(spots, key=lambda name: places[name][1]):  # from the top, so that a name may make room below
        (a, b), spot = places[name], spots[name]
        radius = 4 + 12 * math.sqrt(spot.size / largest)
        said = f"{name}: {spot.x:.3g}, {spot.y:.2f}"
        drawn.append(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius:.1f}" fill="{colours[name]}" fill-opacity="0.75">'
            f"<title>{escape(said)}</title></circle>"
        )
        right = a > _WIDTH * 0.6
        lowest = max(b + 4, lowest + 13)
        drawn.append(
            f'<text x="{a + (-radius - 4 if right else radius + 4):.1f}" y="{lowest:.1f}" class="name" '
            f'text-anchor="{"end" if right else "start"}">{escape(name)}</text>'
        )
    return _svg(drawn, f"{x_title}: {', '.join(spots)}")


def _axis(values: Sequence[float], start: float, end: float, *, is_log: bool, room: float = 0.04) -> _Axis:
    """From the smallest to the largest value, with a little room."""
    low, high = min(values), max(values)
    if is_log and low > 0:
        spread = max(math.log10(high / low), 0.3)
        return _Axis(
            10 ** (math.log10(low) - room * spread), 10 ** (math.log10(high) + room * spread), start, end, True
        )
    spread = high - low or abs(high) * 0.1 or 1.0
    return _Axis(low - room * spread, high + room * spread, start, end)


def _grid(
    x: _Axis, y: _Axis, x_title: str, x_text: Callable[[float], str], y_text: Callable[[float], str]
) -> list[str]:
    bottom, drawn = _HEIGHT - _BOTTOM, []
    for value in y.ticks():
        at = y.place(value)
        drawn.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y_text(value)}</text>')
    for value in x.ticks():
        drawn.append(f'<text x="{x.place(value):.1f}" y="{bottom + 15}" text-anchor="middle">{x_text(value)}</text>')
    drawn.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" class="axis"/>')
    drawn.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x_title)}</text>'
    )
    return drawn


def _plain(value: float) -> str:
    """A tick's number: short, without a power of ten where it need not be."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


def _svg(drawn: Sequence[str], said: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said, quote=True)}">{"".join(drawn)}</svg>'
