"""Whether a store's rows are those that its records were made from, and its counts those of its rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sanbench.errors import SanbenchError
from sanbench.progress import Progress, Report, silent
from sanbench.store.files import Store
from sanbench.store.rows import Rows
from sanbench.store.schema import Record

ReadRows = Callable[[Record], Rows]


def count(rows: Rows, members: Sequence[str] = ()) -> dict[str, int]:
    """Counts of a record, see `Record`; `members` are those of an ensemble of attacks."""
    counts: dict[str, Any] = {"images": len(rows["label"]), "correct": (rows["prediction"] == rows["label"]).sum()}
    if "top5" in rows:
        counts["correct_top5"] = rows["top5"].sum()
    if "clean_prediction" in rows:
        right_before = rows["clean_prediction"] == rows["label"]
        counts |= {"right_before": right_before.sum(), "success": rows["success"].sum()}
        counts |= {name: rows[name].sum() for name in ("forward_passes", "backward_passes") if name in rows}
        if "prediction_8bit" in rows:
            counts["correct_8bit"] = (rows["prediction_8bit"] == rows["label"]).sum()
        counts |= {f"fell_to_{name}": (rows["member"] == n).sum() for n, name in enumerate(members)}
        if "target" in rows:
            counts["hit_target"] = (right_before & (rows["prediction"] == rows["target"])).sum()
    return {name: int(value) for name, value in counts.items()}


def problem(record: Record, rows: ReadRows) -> str | None:
    """What is wrong with a record, as a sentence."""
    try:
        found = rows(record)
    except SanbenchError as error:
        return str(error)
    for name, value in count(found, record.setting.get("members", [])).items():
        if record.counts.get(name) != value:
            return (
                f"Record {record.id} of {record.network.label} ({record.kind}) counts {record.counts.get(name)} {name}, but "
                f"its rows have {value}: measure it again with --force."
            )
    return None


def sound(
    store: Store, records: Sequence[Record], progress: Report = silent, read: ReadRows | None = None
) -> tuple[list[Record], list[str]]:
    """The records that agree with their rows, which `read` may have at hand, and a sentence for each that does not."""
    kept, problems = [], []
    for done, record in enumerate(records, start=1):
        found = problem(record, read or store.columns)
        if found is None:
            kept.append(record)
        else:
            problems.append(found)
        progress(Progress("check records", done, len(records)))
    return kept, problems


def check(store: Store, progress: Report = silent) -> tuple[int, list[str]]:
    """How many records are whole, and everything that is wrong with a store. Raises SanbenchError if there is none."""
    records = store.records()
    lines = list(store.problems)
    kept, problems = sound(store, records, progress)
    store.benchmarks()
    return len(kept), [*lines, *problems, *unknown_rows(store, records)]


def unknown_rows(store: Store, records: Sequence[Record]) -> Iterator[str]:
    """Rows without a record. Files that cannot be read are named with the records that miss them."""
    known = {record.id for record in records}
    for path, ids in store.row_groups():
        for id in ids or ():
            if id not in known:
                yield f"{path} holds rows of {id}, which no record tells of: a record was lost, or another version wrote them."
