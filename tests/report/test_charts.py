"""Curves as SVG: where points lie, which axis they get, what may not get out of them."""

import re
from xml.etree import ElementTree

import pytest

from paddleseg_ext.report.charts import Spot, curves, scatter

COLOURS = {"a": "#111111", "b": "#222222", "<b>": "#333333"}


def parsed(svg):
    return ElementTree.fromstring(svg)


def ticks(svg, anchor):
    return [float(e.text) for e in parsed(svg).iter("text") if e.get("text-anchor") == anchor and _is_number(e.text)]


def _is_number(text):
    return re.fullmatch(r"[-\d.e]+", text) is not None


def test_higher_values_lie_higher_and_later_ones_to_the_right():
    (line,) = parsed(curves({"a": [(1, 5.0), (2, 9.0), (3, 1.0)]}, COLOURS, "x")).iter("polyline")
    (x1, y1), (x2, y2), (x3, y3) = (map(float, p.split(",")) for p in line.get("points").split())
    assert x1 < x2 < x3 and y2 < y1 < y3
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.11) and (y3 - y2) == pytest.approx(2 * (y1 - y2), abs=0.3)


def test_ticks_are_round_and_within_the_values():
    svg = curves({"a": [(0, 0.0), (500, 1.0)]}, COLOURS, "x")
    assert ticks(svg, "end") == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1]) and ticks(svg, "middle") == [
        0,
        100,
        200,
        300,
        400,
        500,
    ]


def test_values_over_many_powers_of_ten_get_a_logarithmic_axis_but_not_those_below_zero():
    assert ticks(curves({"a": [(1, 1000.0), (2, 0.1)]}, COLOURS, "x"), "end") == [0.1, 1, 10, 100, 1000]
    assert 0 in ticks(curves({"a": [(1, 1000.0), (2, -0.1)]}, COLOURS, "x"), "end")


@pytest.mark.parametrize("line", [[(5, 0.0)], [(5, 3.0)], [(1, 2.0), (2, 2.0)], [(7, 1e-9)], [(7, 4e8), (8, 4e8 + 1)]])
def test_a_single_point_and_equal_values_are_drawn_too(line):
    svg = curves({"a": line}, COLOURS, "x")
    assert "nan" not in svg and "inf" not in svg and len(list(parsed(svg).iter("circle"))) == len(line)


def test_each_point_says_its_value_and_names_are_escaped():
    svg = curves({"<b>": [(1, 0.25)]}, COLOURS, 'mIoU "x"')
    assert "<b>" not in svg
    (title,) = parsed(svg).iter("title")
    assert title.text == "<b>, iteration 1: 0.25"


def test_the_best_point_alone_is_ringed():
    svg = curves({"a": [(1, 1.0), (2, 3.0), (3, 2.0)]}, COLOURS, "x", mark_best=True)
    assert [c.get("stroke") is not None for c in parsed(svg).iter("circle")] == [False, True, False]


def test_models_at_one_place_keep_their_names_apart_and_a_larger_one_is_larger():
    svg = scatter({"a": Spot(10, 70, 1e6), "b": Spot(10, 70, 4e6)}, COLOURS, "ms", ["a", "b"])
    heights = [float(e.get("y")) for e in parsed(svg).iter("text") if e.get("class") == "name"]
    assert abs(heights[0] - heights[1]) >= 12
    small, large = (float(c.get("r")) for c in parsed(svg).iter("circle"))
    assert small < large and svg.count('class="change"') == 1
