"""Formulas as MathML, written into the pages when they are built: they need no network and no JavaScript.

A Sphinx extension. Browsers draw MathML themselves: Chromium since version 109, Firefox and Safari for longer. What
`latex2mathml` makes of TeX is corrected where browsers would space it differently from TeX.
"""

from __future__ import annotations

from html import unescape
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, tostring

from docutils import nodes
from latex2mathml.converter import convert_to_element
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

logger = logging.getLogger(__name__)
ACCENTS = {"^", "~", "¯", "˙"}
BARS = {"|", "‖"}
SCRIPTS = {"msub", "msup", "msubsup", "munder", "mover", "munderover"}


def is_named_function(element: Element) -> bool:
    """A name of several letters such as log, with or without an index."""
    if element.tag in SCRIPTS:
        return is_named_function(element[0])
    text = element.text or ""
    return element.tag in {"mi", "mo"} and len(text) > 1 and text.isalpha()


def tidy(element: Element) -> None:
    """In place: names of functions a thin space from their arguments, bars without one, accents close to letters."""
    for child in element:
        tidy(child)
    element.text = unescape(element.text) if element.text else None
    if element.tag == "mi" and element.text == "~":
        element.tag, element.text = "mo", "∼"
    if element.tag == "mo" and is_named_function(element):
        element.tag, element.attrib = "mi", {}
    if element.tag == "mo" and element.text in BARS:
        element.attrib = {"stretchy": "false", "lspace": "0", "rspace": "0"} | element.attrib
    if element.tag == "mover" and element[1].text in ACCENTS:
        element.set("accent", "true")
        element[1].set("stretchy", "false")
    if element.tag in {"mrow", "mtd", "mstyle", "math"}:
        element[:] = spaced(list(element))


def spaced(row: list[Element]) -> list[Element]:
    """A row with thin spaces between names of functions and what stands beside them."""
    result: list[Element] = []
    for before, element in zip([None, *row], row):
        touching = before is not None and not {before.tag, element.tag} & {"mo", "mspace", "mtext"}
        if touching and (is_named_function(before) or is_named_function(element)):
            result.append(Element("mspace", {"width": "0.167em"}))
        result.append(element)
    return result


def mathml(node: nodes.Node, display: str) -> str:
    """The formula of a node; one that cannot be read is a warning, which `make docs` takes for an error."""
    text = node.astext().strip()
    if display == "block" and r"\\" in text and r"\begin{" not in text:
        text = rf"\begin{{split}}{text}\end{{split}}"
    try:
        element = convert_to_element(text, display=display)
    except Exception as error:
        logger.warning("formula %r: %s: %s", text, type(error).__name__, error, location=node)
        return "<code>?</code>"
    tidy(element)
    return tostring(element, encoding="unicode")


def visit_inline(self: Any, node: nodes.math) -> None:
    """A formula within a line."""
    self.body.append(self.starttag(node, "span", "", CLASS="math") + mathml(node, "inline") + "</span>")
    raise nodes.SkipNode


def visit_display(self: Any, node: nodes.math_block) -> None:
    """A formula by itself; a wide one is scrolled within its own box."""
    self.body.append(self.starttag(node, "div", "", CLASS="math") + mathml(node, "block") + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
