"""Chosen images under several conditions: what was done to them, and what each network said of them."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sanbench.evaluation.comparing import Comparison
from sanbench.evaluation.kinds import budget, condition
from sanbench.evaluation.pixels import Pixels
from sanbench.evaluation.robust import Findings
from sanbench.report.cells import Shown, names, selection, shown
from sanbench.report.comparisons import comparisons
from sanbench.report.images import called, embedded, view
from sanbench.store.files import Store
from sanbench.store.schema import Record

CHOSEN = 12  # images of a page
NETWORKS = 8  # whose predictions stand below an image

Said = tuple[str, list[tuple[str, str]], list[list[str]]]  # a condition, its pictures, and a line a network


def pages(
    groups: dict[str, list[Record]], findings: Findings, store: Store, pixels: Pixels | None
) -> dict[str, Callable[[], dict[str, Any]]]:
    """By data set the file of its page, for those with paired tests, and what makes its content."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for number, (data, group) in enumerate(groups.items()):
        if tests := comparisons(group, findings):
            found[page(number)] = partial(content, data, group, tests, findings, store, pixels)
    return found


def page(number: int) -> str:
    return f"report/images/examples-{number}.html"


def content(
    data: str, group: Sequence[Record], tests: Sequence[Comparison], findings: Findings, store: Store, pixels: Pixels | None
) -> dict[str, Any]:
    """What `templates/gallery.html` takes: images that only one network of a pair has right, with all chosen conditions."""
    test = min(tests, key=lambda test: (test.first.setting != {"angle": 90}, test.first.kind != "rotation"))
    named, rows = names(group), findings.rows(test.first)
    first, second = findings.right(test.first), findings.right(test.second)
    half = CHOSEN // 2
    chosen = conditions(group)
    everywhere = np.all([rows["index"].isin(findings.rows(own[0])["index"]) for own in chosen], axis=0)
    places = [place for only in (first & ~second, second & ~first) for place in leading(only, everywhere, half)]
    indices = [int(rows["index"].iloc[place]) for place in places]
    labels = called([int(rows["label"].iloc[place]) for place in places], test.first.classes)
    told = [said(own, indices, named, findings, store, pixels) for own in chosen]
    what = test.condition
    return {
        "title": f"Examples: {data}",
        "about": f"Under {what}: up to {half} images that only {named[shown(test.first)]} has right, then up to {half} that "
        f"only {named[shown(test.second)]} has right, first those that all conditions were measured on. Below each: the "
        "network, what it said, and its confidence in percent. A difference is magnified around grey.",
        "images": [
            (str(index), label, [each[n] for each in told])
            for n, (index, label) in enumerate(zip(indices, labels, strict=True))
        ],
    }


def leading(only: NDArray[np.bool_], everywhere: NDArray[np.bool_], number: int) -> list[int]:
    """The first places in `only`, those that all conditions have before the others."""
    places: list[int] = [*np.flatnonzero(only & everywhere).tolist(), *np.flatnonzero(only & ~everywhere).tolist()]
    return places[:number]


def conditions(group: Sequence[Record]) -> list[list[Record]]:
    """Upright, 90 degrees, a corruption at its highest severity, PGD within its largest budget: of each a record a network."""

    def chosen(kind: str, fits: Callable[[Record], bool], order: Callable[[Record], Any]) -> list[Record]:
        found = [record for record in group if record.kind == kind and fits(record)]
        if not found:
            return []
        best = max(found, key=order)  # the first of equals
        alike = [r for r in found if r.setting == best.setting]
        largest = max(alike, key=lambda record: record.data.images)
        return [r for r in alike if selection(r) == selection(largest)][:NETWORKS]

    every = [
        chosen("accuracy", lambda record: True, lambda record: record.data.images),
        chosen("rotation", lambda record: record.setting == {"angle": 90}, lambda record: record.data.images),
        chosen("corruption", lambda record: True, lambda record: record.setting["severity"]),
        chosen("attack", lambda record: record.setting["attack"] == "pgd", lambda record: budget(record.setting)),
    ]
    return [own for own in every if own]


def said(
    records: Sequence[Record],
    indices: Sequence[int],
    named: dict[Shown, str],
    findings: Findings,
    store: Store,
    pixels: Pixels | None,
) -> list[Said]:
    """Of each image: the condition, its pictures, and of each network prediction and confidence."""
    first = records[0]
    made = pixels(first, indices) if pixels else None
    kept = [(named[shown(record)], store.pictures(record)) for record in records]
    rows = [(named[shown(record)], record.classes, findings.rows(record).set_index("index")) for record in records]
    found = []
    for place, index in enumerate(indices):
        pictures = [(f"{name}: {view(path)}", embedded(path.read_bytes())) for name, own in kept for path in own.get(index, [])]
        if made is not None:
            pictures.insert(0, ("as the network saw it", embedded(png(made[place]))))
        lines = [line(name, classes, own.loc[index]) for name, classes, own in rows if index in own.index]
        found.append((condition(first.kind, first.setting), pictures, lines))
    return found


def line(name: str, classes: Sequence[str], row: Any) -> list[str]:
    (prediction,) = called([int(row["prediction"])], classes)
    mark = "right" if row["prediction"] == row["label"] else "wrong"
    return [name, prediction, mark, f"{100 * row['confidence']:.1f}" if "confidence" in row else "—"]


def png(pixels: NDArray[np.uint8]) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "png")
    return written.getvalue()
