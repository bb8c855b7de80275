"""What counts as right and as robust: the one place that decides it, read by tables, pictures, CSV, console and flags."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sanbench.evaluation.kinds import TOLERANCE, kind_of
from sanbench.evaluation.sanity_checks import FLAGS, compared_flags
from sanbench.evaluation.statistics import Difference, Median, Proportion, mean_proportion, median, paired_difference, wilson
from sanbench.late import Late
from sanbench.store.check import ReadRows
from sanbench.store.files import Store
from sanbench.store.rows import Rows
from sanbench.store.schema import Record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
else:
    np, pd = Late("numpy"), Late("pandas")


class Findings:
    """Records and what they say about each other.

    An image is robust if it is right under the attack of the record, and under the same attack within every smaller budget
    that was measured: an adversarial image within 2/255 lies within 8/255 too. Of everything else an image is right or wrong.

    rows  reads the rows of a record; they are needed where an attack has several budgets, and for paired tests
    """

    def __init__(self, records: Sequence[Record], rows: ReadRows) -> None:
        self.records, self._rows = list(records), rows
        self._right: dict[str, NDArray[np.bool_]] = {}
        self._correct: dict[str, int] = {}
        self._flags: dict[str, list[str]] = {}
        self._differences: dict[tuple[str, str], Difference] = {}

    @classmethod
    def of(cls, store: Store) -> Findings:
        return cls(store.records(), store.columns)

    def rows(self, record: Record) -> pd.DataFrame:
        """`columns` as a table of pandas."""
        return pd.DataFrame(self.columns(record))

    def columns(self, record: Record) -> Rows:
        """A row an image, by ascending index."""
        given = self._rows(record)
        rows = {name: np.asarray(given[name]) for name in given}
        if (np.diff(rows["index"]) >= 0).all():
            return rows
        order = rows["index"].argsort()
        return {name: values[order] for name, values in rows.items()}

    def right(self, record: Record) -> NDArray[np.bool_]:
        """Whether each image is right, or robust, by ascending index."""
        if record.key not in self._right:
            rows = self.columns(record)
            right = rows["prediction"] == rows["label"]
            smaller = self._smaller(record)
            self._right[record.key] = right & self.right(smaller[-1]) if smaller else right
        return self._right[record.key]

    def correct(self, record: Record) -> int:
        """How many images are right, or robust."""
        if record.key not in self._correct:
            self._correct[record.key] = int(self.right(record).sum()) if self._smaller(record) else record.counts["correct"]
        return self._correct[record.key]

    def top1(self, record: Record) -> Proportion:
        """Of all images: accuracy, or robust accuracy."""
        return wilson(self.correct(record), record.counts["images"])

    def mean(self, records: Sequence[Record]) -> Proportion:
        """Of one network on the same images: the mean of top-1 over conditions, see `mean_proportion`."""
        return mean_proportion([self.top1(record) for record in records])

    def success(self, record: Record) -> Proportion | None:
        """Of an attack: not robust, of the images that were right before. Of a transfer: right before and wrong now."""
        if "right_before" not in record.counts:
            return None
        before = record.counts["right_before"]
        nested = kind_of(record.kind).nested(record.setting)
        return wilson(before - self.correct(record) if nested else record.counts["success"], before)

    def within_passes(self, record: Record, passes: int) -> Proportion:
        """Of all images those that stood when the attack had spent so many passes on them; of a record with `max_passes`."""
        rows = self.columns(record)
        stands = (rows["prediction"] == rows["label"]) | (rows["attack_passes"] > passes)
        return wilson(int(stands.sum()), len(stands))

    def distances(self, record: Record) -> NDArray[np.float64]:
        """Of a record of smallest perturbations: how far each image's nearest example is, by ascending index.

        0 for what was wrong before, and infinite where no example was found.
        """
        rows, norm = self.columns(record), record.setting["norm"]
        reached = rows["prediction"] == rows["target"] if "target" in rows else rows["prediction"] != rows["label"]
        wrong = rows["clean_prediction"] != rows["label"]
        return np.where(wrong, 0.0, np.where(reached, rows[norm], np.inf))

    def withstanding(self, record: Record, eps: float) -> Proportion:
        """Of all images those without an example within eps: a point of the curve that smallest perturbations are."""
        if eps == 0:  # what nothing was done to, not what a distance of 0 was found for
            return wilson(record.counts["right_before"], record.counts["images"])
        away = self.distances(record)
        return wilson(int((away > eps + TOLERANCE[record.setting["norm"]]).sum()), len(away))

    def smallest(self, record: Record) -> tuple[Median, Median]:
        """The median smallest perturbation of all images, and of those that were right before."""
        away, rows = self.distances(record), self.columns(record)
        return median(away), median(away[rows["clean_prediction"] == rows["label"]])

    def difference(self, record: Record, baseline: Record) -> Difference:
        """Of two networks measured alike, on the same images."""
        keys = record.key, baseline.key
        if keys not in self._differences:
            self._differences[keys] = paired_difference(self.right(record), self.right(baseline))
        return self._differences[keys]

    def flags(self, record: Record) -> list[str]:
        """In the order of FLAGS: what its own rows show, and what other records of the network on the same images show."""
        if record.key not in self._flags:
            found = set(record.flags)
            if kind_of(record.kind).nested(record.setting):
                others = [each for each in self._alike[self._group(record)] if each.key != record.key]
                found |= set(compared_flags(record, others, self.correct))
            self._flags[record.key] = [name for name in FLAGS if name in found]
        return self._flags[record.key]

    @cached_property
    def _alike(self) -> dict[tuple[str, str, str], list[Record]]:
        """Records of one kind by network and images."""
        groups: dict[tuple[str, str, str], list[Record]] = {}
        for record in self.records:
            groups.setdefault(self._group(record), []).append(record)
        return groups

    def _group(self, record: Record) -> tuple[str, str, str]:
        return record.network.model_dump_json(), record.data.model_dump_json(), record.kind

    @cached_property
    def _nested(self) -> dict[tuple[str, ...], list[tuple[Any, Record]]]:
        """Records of one attack on one network and images, by ascending budget."""
        groups: dict[tuple[str, ...], list[tuple[Any, Record]]] = {}
        for record in self.records:
            if nested := kind_of(record.kind).nested(record.setting):
                groups.setdefault((*self._group(record), nested[0]), []).append((nested[1], record))
        return {group: sorted(own, key=lambda pair: pair[0]) for group, own in groups.items()}

    def _smaller(self, record: Record) -> list[Record]:
        """The same attack within smaller budgets, in their order."""
        nested = kind_of(record.kind).nested(record.setting)
        if nested is None:
            return []
        return [other for budget, other in self._nested[(*self._group(record), nested[0])] if budget < nested[1]]
