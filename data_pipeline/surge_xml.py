"""Surge XT's patch XML as a tree, read with care: a patch may come from anyone.

Everything that Surge keeps lies in attributes, so text between tags is dropped.
"""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element, TreeBuilder, tostring
from xml.parsers import expat

from data_pipeline.cli import UserError

# Surge's own largest patches stay far below.
MAX_XML_BYTES = 8 << 20
MAX_DEPTH = 32
MAX_ELEMENTS = 100_000

_DECLARATION = '<?xml version="1.0" encoding="UTF-8" standalone="yes" ?>'


def parse_patch(xml: bytes) -> Element:
    """The tree of a patch. Raises UserError unless it is well-formed and of honest size, or where it has a DOCTYPE.

    Entities can be declared in a DOCTYPE alone, so none is ever expanded but XML's own five.
    """
    if len(xml) > MAX_XML_BYTES:
        raise UserError(f"the patch is larger than {MAX_XML_BYTES >> 20} MiB")
    builder = TreeBuilder()
    depth = elements = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > MAX_DEPTH or elements > MAX_ELEMENTS:
            raise UserError("the patch has more elements, or deeper ones, than any of Surge XT's")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse_doctype(*_: object) -> None:
        raise UserError("the patch has a DOCTYPE, which no patch of Surge XT has")

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise UserError(f"the patch is malformed XML: {error}") from error
    root: Element = builder.close()
    if root.tag != "patch":
        raise UserError("the XML is not a Surge XT patch: its root is not <patch>")
    return root


def serialise(root: Element) -> str:
    """The tree as Surge XT writes it: one line, empty elements as ``<tag />``."""
    return _DECLARATION + tostring(root, encoding="unicode")


def revision(root: Element) -> int:
    """The patch format's revision: 24 in Surge XT 1.3. Raises UserError where there is none."""
    return int(finite_number(root.get("revision"), "the patch's revision"))


def parameter_section(root: Element) -> Element:
    """The element whose children are the patch's parameters. Raises UserError where there is none."""
    section = root.find("parameters")
    if section is None:
        raise UserError("the patch has no parameters")
    return section


def parameters(root: Element) -> dict[str, Element]:
    """The patch's parameters by tag; Surge XT too reads the first where a tag repeats. Raises UserError."""
    return {element.tag: element for element in reversed(parameter_section(root))}


def finite_number(text: str | None, what: str) -> float:
    """The number that an attribute holds. Raises UserError for none, or one that is not finite."""
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{what} is {(text or '')[:40]!r}, not a number")
    return number
