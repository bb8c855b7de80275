"""The results folder: the only writer of records, rows and reports.

results/records/NETWORK.jsonl          a line a record; what records share (network, images, versions) has a line of its own
results/rows/NETWORK/KIND.parquet      a row an image, a row group a record
results/benchmarks.jsonl               a line a benchmark: what networks and their layers cost on a machine
results/images/NETWORK/SETTING/*.png   examples: clean, adversarial, difference
results/report.*, *.csv, report/       derived from the records: delete them, and `sanbench report` makes them again;
                                       report/files.json lists them, so that the next report removes them
results/studies/STUDY.md               tables of `sanbench study`, derived too
results/work/                          parts of unfinished measurements, claims and half-written files; ignored by git
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from sanbench.errors import InputError, SanbenchError
from sanbench.late import Late
from sanbench.store.claims import Claims, locked, this_process
from sanbench.store.rows import (
    Rows,
    digest,
    from_table,
    group_ids,
    joined,
    read_group,
    read_groups,
    read_whole,
    to_table,
    write_groups,
)
from sanbench.store.schema import Benchmark, Failure, Measurement, Network, Record, slug

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from PIL import Image
else:
    pd, Image = Late("pandas"), Late("PIL.Image")

SHARED = ("network", "training", "data", "classes", "versions")  # fields of records that a file holds once


class Part(NamedTuple):
    """Some images' rows of a measurement, the seconds they took, and the places that the batches of their passes had.

    waited  seconds in which the device had nothing to do, because images were not read or changed yet
    """

    rows: Rows
    seconds: float
    places: int
    waited: float


class Store:
    """The results folder. Everything in it is written whole or not at all. Raises SanbenchError if that fails.

    option    of the command line, which named the folder
    problems  a sentence for each line that could not be read, after a call of `records`
    """

    def __init__(self, root: Path | str = "results", option: str = "--results") -> None:
        self.root, self.option = Path(root), option
        self.work = self.root / "work"
        self.problems: list[str] = []
        self._known: dict[Path, tuple[tuple[int, ...], list[Record], list[str]]] = {}  # by file, until it changes

    # reading

    def records(self) -> list[Record]:
        """All records, oldest first. Lines that are no records are left out and named in `problems`."""
        self.problems = []
        found = [record for path in sorted((self.root / "records").glob("[!.]*.jsonl")) for record in self._read(path)]
        return sorted(found, key=lambda record: record.created)

    def find(self, measurements: Sequence[Measurement]) -> dict[str, Record]:
        """By key, the records of those that have one."""
        keys = {measurement.key for measurement in measurements}
        stems = dict.fromkeys(measurement.network.stem for measurement in measurements)
        found = (record for stem in stems for record in self._read(self.root / "records" / f"{stem}.jsonl"))
        return {record.key: record for record in found if record.key in keys}

    def rows(self, record: Record) -> pd.DataFrame:
        """`columns` as a table of pandas."""
        return pd.DataFrame(self.columns(record))

    def columns(self, record: Record) -> Rows:
        """A row an image. Raises SanbenchError where they are missing or are others than the record's."""
        path = self._rows_path(record.network, record.kind)
        try:
            table = read_group(path, record.id)
            rows = None if table is None else from_table(table)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise SanbenchError(f"{path} cannot be read: {error}.") from error
        if rows is None:
            raise SanbenchError(f"{path} holds no rows of record {record.id}: measure it again with --force.")
        if digest(rows) != record.rows:
            raise SanbenchError(f"{path} holds other rows than those of record {record.id}: measure it again with --force.")
        return rows

    def row_groups(self) -> Iterator[tuple[Path, list[str] | None]]:
        """Each file of rows, and the ids of the records whose rows it holds; None where it cannot be read."""
        for path in sorted((self.root / "rows").glob("*/[!.]*.parquet")):
            try:
                yield path, group_ids(path)
            except (OSError, pa.ArrowException, ValueError):
                yield path, None

    def must_exist(self) -> None:
        """Raises InputError where nothing was ever measured, which a typo in the folder's name looks like."""
        if not any((self.root / name).exists() for name in ("records", "benchmarks.jsonl")):
            raise InputError(f"There are no results in {self.root}: name their folder with {self.option}.")

    def benchmarks(self) -> list[Benchmark]:
        """All benchmarks, oldest first."""
        path = self.root / "benchmarks.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        try:
            found = [Benchmark.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise SanbenchError(f"{path} holds a line that is no benchmark of this version: move it away.") from error
        return sorted(found, key=lambda benchmark: benchmark.created)

    def _read(self, path: Path) -> list[Record]:
        """The records of a file; of a measurement that stands there twice, the one that was made last."""
        if not path.is_file():
            return []
        status = path.stat()
        version = (status.st_mtime_ns, status.st_size, status.st_ino)
        if path not in self._known or self._known[path][0] != version:
            self._known[path] = (version, *parse(path))
        _, records, problems = self._known[path]
        self.problems += [problem for problem in problems if problem not in self.problems]
        return records

    # writing

    def check_writable(self) -> None:
        """Fail before hours of work, not after. Changes nothing that is there."""
        with self.writing(self.root / ".writable") as partial:
            partial.touch()
        (self.root / ".writable").unlink(missing_ok=True)

    def add(self, measured: Sequence[tuple[Record, Rows]]) -> None:
        """Keep finished measurements; what there was of them before, and their parts, go."""
        with self.locked():
            for network in {record.network.stem: record.network for record, _ in measured}.values():
                own = [(record, rows) for record, rows in measured if record.network == network]
                for kind in dict.fromkeys(record.kind for record, _ in own):
                    groups = {record.id: to_table(rows) for record, rows in own if record.kind == kind}
                    path = self._rows_path(network, kind)
                    kept = read_groups(path) if path.is_file() else {}
                    with self.writing(path) as partial:
                        write_groups(partial, kept | groups)
                path = self.root / "records" / f"{network.stem}.jsonl"
                records = {record.key: record for record in self._read(path)} | {record.key: record for record, _ in own}
                self._write_text(path, "".join(json_lines(records.values())))
            for record, _ in measured:
                self.discard(record)

    def remove(self, records: Sequence[Record]) -> None:
        """Forget records; their rows go when they are measured again."""
        gone = {record.key for record in records}
        with self.locked():
            for stem in {record.network.stem for record in records}:
                path = self.root / "records" / f"{stem}.jsonl"
                self._write_text(path, "".join(json_lines(each for each in self._read(path) if each.key not in gone)))

    def write_benchmark(self, benchmark: Benchmark) -> None:
        with self.locked():
            kept = [each for each in self.benchmarks() if each.key != benchmark.key]
            text = "".join(each.model_dump_json() + "\n" for each in [*kept, benchmark])
            self._write_text(self.root / "benchmarks.jsonl", text)

    def write_picture(self, measurement: Measurement, name: str, pixels: NDArray[np.uint8]) -> None:
        """H x W x 3 as images/NETWORK/SETTING/NAME.png."""
        with self.writing(self._pictures(measurement) / f"{name}.png") as partial:
            Image.fromarray(pixels).save(partial)

    def has_pictures(self, measurement: Measurement) -> bool:
        return self._pictures(measurement).is_dir()

    def pictures(self, measurement: Measurement) -> dict[int, list[Path]]:
        """The examples that are kept of a measurement, by the image's index."""
        found: dict[int, list[Path]] = {}
        for path in sorted(self._pictures(measurement).glob("[0-9]*.png")):
            found.setdefault(int(path.name.partition("-")[0]), []).append(path)
        return found

    def write_study(self, name: str, text: str) -> Path:
        """The tables of a study as studies/NAME.md; its path."""
        path = self.root / "studies" / f"{name}.md"
        self._write_text(path, text)
        return path

    def write_derived(self, files: Mapping[str, str]) -> list[Path]:
        """Write report files by their paths from the root, and remove those of the report before that this one has not."""
        listed = self.root / "report" / "files.json"
        for name in self._derived(listed) - set(files):
            (self.root / name).unlink(missing_ok=True)
            if (self.root / name).parent != self.root and not any((self.root / name).parent.iterdir()):
                (self.root / name).parent.rmdir()
        for name, text in files.items():
            self._write_text(self.root / name, text)
        self._write_text(listed, json.dumps(sorted(files), indent=1) + "\n")
        return [self.root / name for name in files]

    def _derived(self, listed: Path) -> set[str]:
        """The files of the report before; of a list that was tampered with, nothing outside of the folder."""
        try:
            names = json.loads(listed.read_text()) if listed.is_file() else []
        except ValueError:
            names = []
        kinds = (".md", ".html", ".tex", ".csv", ".svg")
        inside = [name for name in names if isinstance(name, str) and ".." not in name and name.endswith(kinds)]
        return {name for name in inside if (self.root / name).is_file() and not name.startswith(("/", "records", "rows"))}

    # work in progress

    def write_failure(self, failure: Failure) -> None:
        """Keep why a run failed, until it is tried again."""
        self._write_text(self._failure_path(failure.run), failure.model_dump_json() + "\n")

    def forget_failure(self, run: str) -> None:
        self._failure_path(run).unlink(missing_ok=True)

    def failures(self) -> dict[str, Failure]:
        """By run, why it failed last; what a kill has cut is left out."""
        found = []
        for path in sorted((self.work / "failed").glob("[!.]*.json")):
            with suppress(ValidationError, OSError):
                found.append(Failure.model_validate_json(path.read_bytes()))
        return {failure.run: failure for failure in found}

    def _failure_path(self, run: str) -> Path:
        return self.work / "failed" / f"{slug(run)}.json"

    def claims(self) -> Claims:
        """Claims on parts of this store's measurements, see `Claims`."""
        self._make_work()
        return Claims(self.work)

    def has_part(self, measurement: Measurement, part: int) -> bool:
        return self._part_path(measurement, part).is_file()

    def write_part(self, measurement: Measurement, number: int, part: Part) -> None:
        cost = {name: str(getattr(part, name)) for name in ("seconds", "places", "waited")}
        with self.writing(self._part_path(measurement, number)) as partial:
            pq.write_table(to_table(part.rows).replace_schema_metadata(cost), partial)
        self.unfinished_path(measurement, number).unlink(missing_ok=True)

    def write_unfinished(self, measurement: Measurement, part: int, write: Callable[[Path], object]) -> None:
        """Keep how far a part is, as `write` writes it."""
        with self.writing(self.unfinished_path(measurement, part)) as partial:
            write(partial)

    def unfinished_path(self, measurement: Measurement, part: int) -> Path:
        """Where a part is kept as far as it is, while it is measured."""
        return self._part_path(measurement, part).with_suffix(".unfinished")

    def part_rows(self, measurement: Measurement, part: int) -> Rows | None:
        """Those of one part; None where it is no part any more, but belongs to a record."""
        try:
            return from_table(read_whole(self._part_path(measurement, part)))
        except FileNotFoundError:
            return None

    def read_parts(self, measurement: Measurement, parts: int) -> Part:
        """All parts as one, in order."""
        tables = [read_whole(self._part_path(measurement, number)) for number in range(parts)]
        seconds = sum(float(table.schema.metadata[b"seconds"]) for table in tables)
        places = sum(int(table.schema.metadata[b"places"]) for table in tables)
        waited = sum(float(table.schema.metadata.get(b"waited", 0)) for table in tables)
        return Part(joined([from_table(table) for table in tables]), seconds, places, waited)

    def discard(self, measurement: Measurement) -> None:
        """Forget the parts of a measurement."""
        shutil.rmtree(self._part_path(measurement, 0).parent, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        self._make_work()
        with locked(self.work):
            yield

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """A path to write to, which becomes `path` at the end, or nothing. It lies in work/partial, where no reader looks."""
        partial = self.work / "partial" / f"{this_process()}-{path.name}"  # keeps the suffix, which decides a picture's format
        try:
            self._make_work()
            partial.parent.mkdir(exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield partial
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise SanbenchError(f"Cannot write {path}: {reason}. Name another folder with {self.option}.") from error

    def _make_work(self) -> None:
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            if not (self.work / ".gitignore").is_file():
                (self.work / ".gitignore").write_text("*\n")
        except OSError as error:
            raise SanbenchError(
                f"Cannot write {self.root}: {error.strerror or error}. Name another folder with {self.option}."
            ) from error

    def _write_text(self, path: Path, text: str) -> None:
        with self.writing(path) as partial:
            partial.write_text(text)

    def _rows_path(self, network: Network, kind: str) -> Path:
        return self.root / "rows" / network.stem / f"{kind}.parquet"

    def _part_path(self, measurement: Measurement, number: int) -> Path:
        return self.work / "parts" / measurement.id / f"{number:05d}.parquet"

    def _pictures(self, measurement: Measurement) -> Path:
        words = [str(value) for name, value in measurement.setting.items() if name in ("attack", "eps", "surrogate")]
        return self.root / "images" / measurement.network.stem / slug(measurement.kind, *words, measurement.id[:8])


def parse(path: Path) -> tuple[list[Record], list[str]]:
    """The records in a file, and a sentence for each line that is none."""
    shared: dict[str, Any] = {}
    found: dict[str, Record] = {}
    problems = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            content = json.loads(line)
        except ValueError:
            problems.append(f"{path}, line {number}, is cut or damaged: it is left out.")
            continue
        try:
            if content.pop("digest") != line_digest(content):
                problems.append(f"{path}, line {number}, is not as it was written: it is left out.")
            elif "value" in content:
                shared[line_digest(content)] = content["value"]
            else:
                record = Record(**content | {field: shared[content[field]] for field in SHARED})
                if record.key not in found or found[record.key].created <= record.created:
                    found[record.key] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{path}, line {number}, is not a record of this version of sanbench: it is left out.")
    return list(found.values()), problems


def json_lines(records: Iterable[Record]) -> Iterator[str]:
    """Each record in a line; the values of its SHARED fields in lines of their own, each before the first that needs it.

    A line ends in its digest, by which a record refers to the values.
    """
    written = set()
    for record in records:
        content = record.model_dump(mode="json")
        for field in SHARED:
            value = {"field": field, "value": content[field]}
            content[field] = line_digest(value)
            if content[field] not in written:
                yield json.dumps(value | {"digest": content[field]}) + "\n"
                written.add(content[field])
        yield json.dumps(content | {"digest": line_digest(content)}) + "\n"


def line_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
