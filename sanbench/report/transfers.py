"""Transferred attacks: a matrix for each attack and budget, made on the row's network, scored on the column's."""

from collections.abc import Sequence

from sanbench.evaluation.kinds import NORMS, listed
from sanbench.evaluation.robust import Findings
from sanbench.report.cells import cell, number_of_images
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.schema import Record


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    blocks: list[Block] = []
    transfers = [record for record in group if record.kind == "transfer"]
    for shared in dict.fromkeys(map(protocol, transfers)):
        chosen = [record for record in transfers if protocol(record) == shared]
        lines = []
        for surrogate in dict.fromkeys(record.setting["surrogate"] for record in chosen):
            records = [record for record in chosen if record.setting["surrogate"] == surrogate]
            line = {"made on": surrogate}
            line |= {f"{r.network.label} ({r.run})": cell(findings.success(r)) for r in records}
            lines.append(line | {"n": number_of_images(records[0].data)})
        setting = chosen[0].setting
        text = (
            "Attack success: wrong now, of the images that the column's network had right before, on images made for the "
            f"row's. Protocol: {shared}."
        )
        title = f"Transfer: {setting['attack']}, {NORMS[setting['norm']]} ε = {setting['eps']}"
        blocks += [Heading(title, 3), Text(text), Table(lines)]
    return blocks


def protocol(record: Record) -> str:
    return listed({name: value for name, value in record.setting.items() if not name.startswith("surrogate")}, "; ")
