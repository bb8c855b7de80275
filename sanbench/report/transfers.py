"""Transferred attacks: made on one network, scored on another."""

from collections.abc import Sequence

from sanbench.evaluation.kinds import NORMS, listed
from sanbench.evaluation.robust import Findings
from sanbench.evaluation.statistics import Proportion
from sanbench.report.cells import cell, main_selection, matrix, names, series, told_n
from sanbench.report.charts import Panel
from sanbench.report.rendering import Block, Heading, Picture, Table, Text
from sanbench.store.schema import Record


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """A picture and a table for each attack and budget: a row the network it was made on, a column the one it was shown."""
    transfers = [record for record in group if record.kind == "transfer"]
    if not transfers:
        return []
    named = names(group)
    made_on = surrogates(transfers)
    panels, tables = [], []
    for shared in dict.fromkeys(map(protocol, transfers)):
        chosen = [record for record in transfers if protocol(record) == shared]
        setting = chosen[0].setting
        title = f"{setting['attack']}, {NORMS[setting['norm']]} ε = {setting['eps']}"
        drawn = main_selection(chosen)
        panels.append(
            Panel(
                f"{title}, {told_n(drawn)}",
                "attack success",
                series(
                    drawn, lambda record: f"made on {made_on[weights(record)]}", lambda record: success(record, findings), named
                ),
            )
        )
        rows = matrix(
            chosen, lambda record: {"made on": made_on[weights(record)]}, lambda record: cell(success(record, findings)), named
        )
        tables.append(Table(rows, f"{title}. Protocol: {shared}"))
    text = "Attack success: wrong now, of the images that the network had right before, on images made on another network."
    return [Heading("Transferred attacks", 3), Text(text), Picture(panels, "Success of transferred attacks."), *tables]


def success(record: Record, findings: Findings) -> Proportion:
    found = findings.success(record)
    assert found is not None  # a transfer counts what was right before
    return found


def weights(record: Record) -> str:
    """What an attack was made on."""
    return listed({name: value for name, value in record.setting.items() if name.startswith("surrogate")}, ", ")


def surrogates(records: Sequence[Record]) -> dict[str, str]:
    """Names of what attacks were made on; of one name several times with all that is known of each."""
    found = {weights(record): record.setting["surrogate"] for record in records}
    return {full: name if list(found.values()).count(name) == 1 else full for full, name in found.items()}


def protocol(record: Record) -> str:
    return listed({name: value for name, value in record.setting.items() if not name.startswith("surrogate")}, "; ")
