"""The images behind a figure: which ones only one of two networks has right, and what both said of them."""

import base64
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from numpy.typing import NDArray

from sanbench.evaluation.comparing import Comparison
from sanbench.evaluation.robust import Findings
from sanbench.printable import one_line
from sanbench.report.cells import names, number_of_images, shown
from sanbench.report.comparisons import comparisons, page, points
from sanbench.store.files import Store
from sanbench.store.schema import Record

LISTED = 200  # images of each side of a page
SHOTS = 24  # images of each side whose pictures are shown


def pages(group: Sequence[Record], findings: Findings, store: Store) -> dict[str, Callable[[], dict[str, Any]]]:
    """By file, what makes the content of the page of a pair and a condition; those on which both agree have none."""
    named = names(group)
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for test in comparisons(group, findings):
        if test.difference.only_first + test.difference.only_second:
            titles = named[shown(test.first)], named[shown(test.second)]
            found[page(test)] = partial(content, test, titles, findings, store)
    return found


def content(test: Comparison, titles: tuple[str, str], findings: Findings, store: Store) -> dict[str, Any]:
    """What `templates/images.html` takes: a side for each network, with the images that it alone has right."""
    san, resnet = test.first, test.second
    what = test.condition
    right = findings.right(san), findings.right(resnet)
    rows = findings.rows(san), findings.rows(resnet)
    total, kept = number_of_images(san.data), [(titles[0], store.pictures(san)), (titles[1], store.pictures(resnet))]
    sides = []
    for title, only in (
        (f"Only {titles[0]} is right", right[0] & ~right[1]),
        (f"Only {titles[1]} is right", right[1] & ~right[0]),
    ):
        sides.append((title, int(only.sum()), shots(only, rows[0], kept, san.classes), listing(only, rows, san.classes)))
    both = int((right[0] & right[1]).sum())
    return {
        "title": f"{what}: {titles[0]} against {titles[1]}",
        "about": f"n {total}. Both are right on {both:,}, neither on {int((~right[0] & ~right[1]).sum()):,}. Difference "
        f"{points(test.difference)} points. Predictions are those under this condition; under attack an image may have fallen "
        "within a smaller budget.",
        "sides": sides,
        "listed": LISTED,
        "total": total,
        "columns": ["image", "label", *(f"{title}: {what}" for title in titles for what in ("prediction", "confidence"))],
    }


def listing(only: NDArray[np.bool_], rows: Sequence[pd.DataFrame], classes: Sequence[str]) -> Markup:
    """The body of a table, a line an image: index, label, and of each network prediction and confidence in percent.

    Not by the template: a study has a million such lines.
    """
    own = [each[only].head(LISTED) for each in rows]
    columns = [own[0]["index"].astype(str), map(safe, called(own[0]["label"], classes))]
    for each in own:
        columns.append(map(safe, called(each["prediction"], classes)))
        columns.append([f"{100 * value:.1f}" for value in each["confidence"]] if "confidence" in each else ["—"] * len(each))
    lines = (f"<tr><th scope=row>{index}<td>{'<td>'.join(cells)}" for index, *cells in zip(*columns, strict=True))
    return Markup("\n".join(lines))  # its names are escaped


@lru_cache(maxsize=2**16)
def safe(name: str) -> str:
    return escape(one_line(name))


def called(labels: Iterable[int], classes: Sequence[str]) -> list[str]:
    """Names of classes; a prediction that is none has no name."""
    return ["none" if label < 0 else classes[label] if label < len(classes) else str(label) for label in labels]


def shots(
    only: NDArray[np.bool_], rows: pd.DataFrame, kept: Sequence[tuple[str, dict[int, list[Path]]]], classes: Sequence[str]
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Of the first images that have any: index, label, and the pictures that the store keeps of both networks."""
    own = rows[only & rows["index"].isin([index for _, pictures in kept for index in pictures]).to_numpy()].head(SHOTS)
    found = []
    for index, label in zip(own["index"].tolist(), called(own["label"], classes), strict=True):
        paths = [(title, path) for title, pictures in kept for path in pictures.get(index, [])]
        found.append((str(index), label, [(f"{title}: {view(path)}", embedded(path.read_bytes())) for title, path in paths]))
    return found


def view(path: Path) -> str:
    """`clean`, `adversarial as bag` or `difference` of 00003-coat-adversarial-as-bag.png."""
    return " ".join(path.stem.split("-")[2:])


def embedded(png: bytes) -> str:
    """A picture within a page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
