"""Charts as SVG within a page: with the page's colours, and without style attributes.

The page's Content-Security-Policy forbids inline styles, which matplotlib writes and browsers would
ignore. They are turned into presentation attributes, which are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from trakstore.report.charts import ACCENT, GRID
from trakstore.report.top_images import HARMED, HELPED, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of a drawing become names of the page's colours, which has a dark and a light theme.
COLOURS = {
    INK: "currentColor",
    "#000000": "currentColor",
    ACCENT: "var(--accent)",
    HELPED: "var(--good)",
    HARMED: "var(--bad)",
    GRID: "var(--line)",
}
_KEPT = (
    "fill-opacity",
    "opacity",
    "stroke-dasharray",
    "stroke-dashoffset",
    "stroke-linecap",
    "stroke-linejoin",
    "stroke-opacity",
    "stroke-width",
    "text-anchor",
)
# Inches for the labels. Measuring them, as a tight layout does, would double the time of drawing.
_MARGINS = (0.85, 0.52)
_PAINT = ("fill", "stroke")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)px")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline_svg(
    draw: Callable[[Axes], object], label: str, name: str, size: tuple[float, float] = (4.4, 2.8)
) -> str:
    """Draw on axes, and return the drawing as an ``svg`` element.

    Parameters
    ----------
    draw : callable
        Function of the axes to draw on.
    label : str
        Description for people who do not see the drawing.
    name : str
        Prefix of the ids within, unique on the page.
    size : (width, height)
        Inches of 72 px; the page may scale it. Letters are 11 px high, readable on a telephone if the
        drawing is at most 4.6 inches wide.
    """
    root = ElementTree.fromstring(_drawn(draw, size))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        _clean(element, name)
    # Without a size of its own, the page's style scales it. The label is read aloud in place of the
    # shapes.
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def untitled(axes: Axes) -> None:
    """Remove the title of a chart, since the page has it as text."""
    axes.set_title("", loc="left")


def _drawn(draw: Callable[[Axes], object], size: tuple[float, float]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, which can be read and searched. Without salt and date, the same chart has the
    # same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 11}):
        figure = Figure(figsize=size)
        left, bottom = _MARGINS[0] / size[0], _MARGINS[1] / size[1]
        draw(figure.add_axes((left, bottom, 0.98 - left, 0.96 - bottom)))
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def _clean(element: ElementTree.Element, name: str) -> None:
    """Remove namespaces, and matplotlib's classes and styles; make ids unique to this drawing.

    All drawings have the same ids (clip paths and markers): on a page with many, a reference would find
    the first drawing's.
    """
    element.tag, element.tail = element.tag.rpartition("}")[2], None
    element.text = (element.text or "").strip() or None
    given = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    given |= _declarations(given.pop("style", ""))
    if element.tag == "g":
        given.pop("id", None)
    if "id" in given:
        given["id"] = f"{name}-{given['id']}"
    if given.get("href", "").startswith("#"):
        given["href"] = f"#{name}-{given['href'][1:]}"
    for key, value in given.items():
        given[key] = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    element.attrib = given


def _declarations(style: str) -> dict[str, str]:
    """Turn a style into presentation attributes; fonts are the page's, their sizes the drawing's."""
    attributes = {}
    for declaration in filter(None, map(str.strip, style.split(";"))):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key in _PAINT:
            attributes[key] = COLOURS.get(value.lower(), value)
        elif key in _KEPT:
            attributes[key] = value
        elif key in ("font", "font-size") and (size := _SIZE.search(value)):
            attributes["font-size"] = size[1]
    return attributes
