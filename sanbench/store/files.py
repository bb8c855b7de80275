"""Results as files: rows of images in Parquet, one frozen Record a measurement. The only writer of results/.

results/rows/NAME.parquet         a row an image; while measuring, results/rows/NAME/00000.parquet, ... part by part
results/records/NAME.json         counts and all that decides them
results/images/NAME/*.png         examples: clean, adversarial, difference
results/benchmarks.jsonl          a line a benchmark: what something costs on a machine
results/report.md, *.csv, *.png   derived from the records
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from sanbench.errors import SanbenchError
from sanbench.store.schema import Benchmark

Kind = TypeVar("Kind", bound=BaseModel)


class Measurement(BaseModel):
    """All that decides a result. Two measurements with the same key have the same result up to float rounding.

    data        name, split, fingerprint, decoder, number of images used and there, seed of the subset
    experiment  accuracy, rotation, attack, transfer or corruption; `setting` holds its parameters, an attack's seed among them
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str  # SHA-256
    data: dict[str, Any]
    experiment: str
    setting: dict[str, Any]

    @property
    def key(self) -> str:
        decisive = self.model_dump(include=set(Measurement.model_fields))  # the same for a Record of the measurement
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The key's beginning behind what a reader looks for: `san10_pairwise-rotation-90-1a2b3c4d5e6f`."""
        words = [
            self.model,
            self.experiment,
            *(str(self.setting[k]) for k in ("angle", "attack", "eps", "kind", "severity") if k in self.setting),
        ]
        return "-".join("".join(c if c.isalnum() or c in "_." else "_" for c in word) for word in [*words, self.key[:12]])


class Record(Measurement):
    """A measurement's outcome.

    counts      images, correct, correct_top5; under attack also right_before, success (right before and wrong now),
                hit_target, correct_8bit (as 8-bit images), forward_passes and backward_passes (of one image each), places
                (of the batches: forward_passes / places is how full they were), and for an ensemble fell_to_MEMBER.
                Robust accuracy is correct / images, attack success is success / right_before
    extremes    largest perturbation norms
    flags       signs that the figure says less than it seems to, see `sanbench.evaluation.sanity_checks`
    training    how the weights came about, as far as their file tells: recipe, seed, epoch, images, seconds; `selection`
                says on which images the epoch was chosen
    normalisation  mean and std inside the network; what photographs went through before is data's `preprocessing`
    """

    run: str
    counts: dict[str, int]
    extremes: dict[str, float]
    training: dict[str, Any]
    selection: str
    normalisation: dict[str, Any] = {}
    classes: list[str] = []
    flags: list[str] = []
    versions: dict[str, str]
    device: str
    seconds: float
    created: str


class Store:
    """The results folder. Everything in it is written whole or not at all. Raises SanbenchError if that fails."""

    def __init__(self, root: Path | str = "results") -> None:
        self.root = Path(root)

    def check_writable(self) -> None:
        """Fail before hours of work, not after. Changes nothing that is there."""
        self._write(self.root / ".writable", lambda path: path.touch())
        (self.root / ".writable").unlink()

    def find(self, measurement: Measurement) -> Record | None:
        path = self._record_path(measurement)
        return self._read_record(path) if path.is_file() else None

    def records(self) -> list[Record]:
        """All records, oldest first."""
        found = [self._read_record(path) for path in sorted((self.root / "records").glob("*.json"))]
        return sorted(found, key=lambda record: record.created)

    def write_benchmark(self, benchmark: Benchmark) -> None:
        """Add a line, or replace the one with the same key."""
        found = {other.key: other for other in self.benchmarks()} | {benchmark.key: benchmark}
        self._write_text(self._benchmarks_path, "".join(f"{other.model_dump_json()}\n" for other in found.values()))

    def benchmarks(self) -> list[Benchmark]:
        """All benchmarks, oldest first."""
        path = self._benchmarks_path
        lines = path.read_text().splitlines() if path.is_file() else []
        try:
            found = [Benchmark.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise SanbenchError(f"{path} holds what is no benchmark of this version of sanbench: mend it.") from error
        return sorted(found, key=lambda benchmark: benchmark.created)

    def rows(self, measurement: Measurement) -> pd.DataFrame:
        return pd.read_parquet(self._rows_path(measurement))

    def has_part(self, measurement: Measurement, part: int) -> bool:
        return self._part_path(measurement, part).is_file()

    def write_part(self, measurement: Measurement, part: int, rows: pd.DataFrame, seconds: float, places: int = 0) -> None:
        table = pa.Table.from_pandas(rows, preserve_index=False)
        cost = {b"seconds": str(seconds).encode(), b"places": str(places).encode()}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **cost})
        self._write(self._part_path(measurement, part), lambda path: pq.write_table(table, path))

    def read_parts(self, measurement: Measurement, parts: int) -> tuple[pd.DataFrame, float, int]:
        """All rows in order, the seconds they took, and the places that the batches of their passes had."""
        tables = [pq.read_table(self._part_path(measurement, part)) for part in range(parts)]
        seconds = sum(float(table.schema.metadata[b"seconds"]) for table in tables)
        places = sum(int(table.schema.metadata[b"places"]) for table in tables)
        return pd.concat([table.to_pandas() for table in tables], ignore_index=True), seconds, places

    def write(self, record: Record, rows: pd.DataFrame) -> None:
        """Keep a finished measurement; its parts, if any, go."""
        table = pa.Table.from_pandas(rows, preserve_index=False)
        self._write(self._rows_path(record), lambda path: pq.write_table(table, path))
        self._write_text(self._record_path(record), record.model_dump_json(indent=1) + "\n")
        shutil.rmtree(self._part_path(record, 0).parent, ignore_errors=True)

    def write_flags(self, record: Record, flags: list[str]) -> Record:
        """What later measurements showed about an earlier one."""
        changed = record.model_copy(update={"flags": flags})
        self._write_text(self._record_path(record), changed.model_dump_json(indent=1) + "\n")
        return changed

    def write_picture(self, measurement: Measurement, name: str, pixels: NDArray[np.uint8]) -> None:
        """H x W x 3 as images/MEASUREMENT/NAME.png."""
        path = self.root / "images" / measurement.name / f"{name}.png"
        self._write(path, lambda partial: Image.fromarray(pixels).save(partial))

    def has_pictures(self, measurement: Measurement) -> bool:
        return (self.root / "images" / measurement.name).is_dir()

    def discard(self, measurement: Measurement) -> None:
        """Forget the parts of an unfinished measurement."""
        shutil.rmtree(self._part_path(measurement, 0).parent, ignore_errors=True)

    def write_derived(self, files: Mapping[str, str | Callable[[Path], None]]) -> list[Path]:
        """Write report files by name: a text, or a function that draws into the path it is given."""
        for name, content in files.items():
            if isinstance(content, str):
                self._write_text(self.root / name, content)
            else:
                self._write(self.root / name, content)
        return [self.root / name for name in files]

    @property
    def _benchmarks_path(self) -> Path:
        return self.root / "benchmarks.jsonl"

    def _record_path(self, measurement: Measurement) -> Path:
        return self.root / "records" / f"{measurement.name}.json"

    def _rows_path(self, measurement: Measurement) -> Path:
        return self.root / "rows" / f"{measurement.name}.parquet"

    def _part_path(self, measurement: Measurement, part: int) -> Path:
        return self.root / "rows" / measurement.name / f"{part:05d}.parquet"

    def _read_record(self, path: Path) -> Record:
        return self._parse(path, Record)

    def _parse(self, path: Path, kind: type[Kind]) -> Kind:
        try:
            return kind.model_validate_json(path.read_text())
        except (ValidationError, UnicodeDecodeError) as error:
            raise SanbenchError(f"{path} is not a record of this version of sanbench: move it away, or mend it.") from error

    def _write_text(self, path: Path, text: str) -> None:
        self._write(path, lambda partial: partial.write_text(text))

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        partial = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, which decides a picture's format
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise SanbenchError(
                f"Cannot write {path}: {error.strerror or error}. Name another folder with --results."
            ) from error
