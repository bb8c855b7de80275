"""A report as one HTML file, pictures as SVG files, and pages of images: `templates/` by Jinja, which escapes every name."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sanbench.printable import one_line
from sanbench.report.charts import COLOURED, drawn, legend, look, sheet
from sanbench.report.rendering import Block, Picture, Report, Section, Table

FOLDED_ROWS = 12  # a longer table, or one below a picture, is folded


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("sanbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    made.globals |= {"drawn": drawn, "legend": legend, "keys": keys, "folds": folds}
    return made


def keys(order: Sequence[str]) -> list[dict[str, str]]:
    """What a legend shows; networks without a colour are one entry."""
    shown = [look(name, order) for name in order[:COLOURED]]
    others = len(order) - COLOURED
    return shown + ([{"name": f"{others} others", "look": "other", "mark": ""}] if others > 0 else [])


def folds(section: Section) -> bool:
    pictures = any(isinstance(block, Picture) for block in section.blocks)
    return pictures or any(len(block.rows) > FOLDED_ROWS for block in section.blocks if isinstance(block, Table))


@cache
def source(name: str) -> Markup:
    """A file of styles or of the script, as it is; styles without line breaks' spaces."""
    loader = environment().loader
    assert loader is not None
    return Markup(re.sub(r"\n\s*", "\n", loader.get_source(environment(), name)[0]))


def page_files(report: Report) -> dict[str, str]:
    """report.html, and the pages of images that its cells point to."""
    shared = {"style": source("style.css") + source("chart.css"), "script": source("sort.js")}
    files = {"report.html": environment().get_template("report.html").render(report=report, root="", **shared)}
    pages = {name: environment().get_template("images.html").render(**shared, **made()) for name, made in report.images.items()}
    gallery = environment().get_template("gallery.html")
    return files | pages | {name: gallery.render(**shared, **made()) for name, made in report.examples.items()}


def blocks_html(blocks: Sequence[Block]) -> str:
    """A part of a page."""
    module = environment().get_template("blocks.html").make_module({"root": ""})
    return str(module.blocks(blocks, False))  # type: ignore[attr-defined]  # a macro of the template


def svg(picture: Picture) -> str:
    """A file for the pictures of report.md and the README."""
    module: Any = environment().get_template("chart.svg").module
    return str(module.file(sheet(picture.panels), picture.caption, source("chart.css"))).strip() + "\n"


def picture_files(report: Report) -> Mapping[str, str]:
    pictures = [block for section in report.sections for block in section.blocks if isinstance(block, Picture)]
    return {picture.file: svg(picture) for picture in pictures}
