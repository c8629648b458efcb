"""The picture: XML with a line for each side, whose points are where the figures say."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from xensock.bench.plot import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, nice_top, size_name, svg

SVG = "{http://www.w3.org/2000/svg}"


def test_a_picture_is_xml_with_both_lines() -> None:
    sizes = [64, 4096, 1 << 20]
    text = svg("a < b", sizes, [Line("ours", "#06c", [1, 10, 20]), Line("k", "#c60", [1, 5, 10])])
    root = ET.fromstring(text)
    assert root.find(f"{SVG}title").text == "a < b"  # type: ignore[union-attr]
    lines = root.findall(f"{SVG}polyline")
    assert len(lines) == 2
    points = [tuple(map(float, point.split(","))) for point in lines[0].get("points", "").split()]
    assert points[0][0] == LEFT
    assert points[-1] == (WIDTH - RIGHT, TOP)  # 20 is the top of the axis
    assert points[0][1] > points[1][1] > points[2][1]
    assert all(0 < y < HEIGHT for _, y in points)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"64", "4K", "1M", "ours", "k", "Gbit/s"} <= set(words)


def test_one_size_is_a_picture_too() -> None:
    ET.fromstring(svg("one", [4096], [Line("ours", "#06c", [3])]))


@pytest.mark.parametrize(
    ("most", "top"), [(0, 1), (0.3, 0.5), (1, 1), (1.1, 2), (27, 50), (60, 100), (100, 100)]
)
def test_an_axis_ends_at_a_round_figure(most: float, top: float) -> None:
    assert nice_top(most) == pytest.approx(top)


@pytest.mark.parametrize(
    ("size", "name"), [(64, "64"), (1000, "1000"), (4096, "4K"), (1 << 20, "1M"), (1536, "1536")]
)
def test_sizes_are_written_short(size: int, name: str) -> None:
    assert size_name(size) == name
