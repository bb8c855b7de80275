"""The README's table: one row a network, from the records of a store."""

from collections.abc import Callable, Sequence

from sanbench.evaluation.robust import Findings
from sanbench.report.cells import cell, short
from sanbench.report.rendering import Block, Table, Text, markdown
from sanbench.store.schema import Record


def pgd(eps: str) -> Callable[[Record], bool]:
    return lambda r: r.kind == "attack" and [r.setting.get(name) for name in ("attack", "steps", "eps")] == ["pgd", 10, eps]


COLUMNS: dict[str, Callable[[Record], bool]] = {
    "upright": lambda r: r.kind == "accuracy",
    "90°": lambda r: r.kind == "rotation" and r.setting == {"angle": 90},
    "180°": lambda r: r.kind == "rotation" and r.setting == {"angle": 180},
    "PGD, ε = 2/255": pgd("2/255"),
    "PGD, ε = 8/255": pgd("8/255"),
}


def summary(findings: Findings, networks: Sequence[str]) -> str:
    """Markdown: top-1 in % of each network that `networks` names, by COLUMNS, and how it was measured.

    Where a network was measured on several subsets of the images, the largest counts. Raises ValueError if a cell is empty.
    """
    lines, used = [], list[Record]()
    for name in networks:
        records = [record for record in findings.records if record.network.name == name]
        chosen = {title: max(filter(fits, records), key=lambda record: record.data.images) for title, fits in COLUMNS.items()}
        used += chosen.values()
        label, weights = chosen["upright"].network.label, short(chosen["upright"].network)
        lines.append({"network": label} | {t: cell(findings.top1(r)) for t, r in chosen.items()} | {"weights": weights})
    blocks: list[Block] = [Table(lines), Text(conditions(used))]
    return markdown(blocks)


def conditions(records: Sequence[Record]) -> str:
    """n, seeds, device and date of the records, as a sentence."""
    data = records[0].data
    attacked = sorted({record.data.images for record in records if record.kind == "attack"})
    seeds = sorted({record.training["seed"] for record in records})
    devices = "; ".join(sorted({record.device for record in records}))
    days = sorted({record.created[:10] for record in records})
    return (
        f"Top-1 in % with 95% Wilson intervals: {data.images:,} {data.split} images of {data.name}, under PGD "
        f"{' or '.join(f'{number:,}' for number in attacked)} of them (L∞, 10 steps of ε/4, one random start). "
        f"Training seed {', '.join(map(str, seeds))}. Measured on {devices}, {' to '.join(dict.fromkeys((days[0], days[-1])))}."
    )
