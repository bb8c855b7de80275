"""Study: networks x seeds, what is measured of them, and tables, read from a TOML file. Nothing here needs torch.

A study is `sanbench/studies/NAME.toml`, or a file of anyone's own. What is wrong in it is told with its line.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sanbench.errors import InputError, unknown

VERSION = 1
SOURCES = {  # fields that name another study, and what that says then
    "networks_of": ("tables_of", "data", "image_size", "recipe", "seeds", "set", "networks"),
    "tables_of": ("networks", "tables"),
}
SHIPPED = Path(__file__).parent
NAME = re.compile(r"[A-Za-z0-9_]+")  # of a study and of a network: parts of a run's name

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkEntry(Part):
    """`model` as `sanbench models` lists, by default the entry's name; `set` as of `sanbench train --set`."""

    model: str | None = None
    set: dict[str, Any] = {}


class Measure(Part):
    """Texts as `sanbench.evaluate` takes them, of `networks` (default: all), on `limit` images drawn by `seed` (default: all).

    set  further options of their commands, such as steps = 100
    """

    what: list[str] = Field(min_length=1)
    networks: list[str] | None = None
    limit: int | None = Field(default=None, ge=1)
    seed: Seed = 0
    set: dict[str, Any] = {}


class Rows(Part):
    """Networks below each other: by name what the table calls them, or a list. `reference` is what they are compared with."""

    title: str = ""
    networks: dict[str, str] = Field(min_length=1)
    reference: str | None = None

    @field_validator("networks", mode="before")
    @classmethod
    def named(cls, value: Any) -> Any:
        return {name: name for name in value} if isinstance(value, list) and all(isinstance(n, str) for n in value) else value


class TableEntry(Part):
    """columns  parameters, gmacs, top1, top5, or a measurement of one condition, as rotate:90, with `drop` (upright minus
    top-1) or `success` (of an attack) before it
    """

    title: str
    columns: list[str] = Field(min_length=1)
    rows: list[Rows] = Field(min_length=1)


class TablesOf(Part):
    """`tables` of another study, with their networks."""

    study: str
    tables: list[str] = Field(min_length=1)


class Content(Part):
    """What a file holds.

    image_size   side of the crops of photographs; default: that of `sanbench train`
    recipe       of RECIPES; default: the data set's
    set          fields of recipe and network by the name of the network's family
    networks_of  the study that says data, recipe, set, seeds and networks, in place of this one: its runs are shared
    tables_of    the study that says networks and tables: its runs are not shared
    """

    version: int
    title: str
    data: str = "fashion10k"
    image_size: int | None = Field(default=None, ge=32, le=4096)
    recipe: str | None = None
    seeds: list[Seed] = Field(default=[0], min_length=1)
    set: dict[str, dict[str, Any]] = {}
    networks_of: str | None = None
    tables_of: TablesOf | None = None
    networks: dict[str, NetworkEntry] = {}
    measure: list[Measure] = Field(min_length=1)
    tables: dict[str, TableEntry] = {}


@dataclass(frozen=True)
class Study:
    """`networks` is the study that names the networks: itself, or the one of `networks_of`."""

    name: str
    path: Path
    content: Content
    text: str
    base: "Study | None" = None

    @property
    def networks(self) -> "Study":
        return self.base or self

    @property
    def word(self) -> str:
        """What the command line calls it."""
        return self.name if self.path.parent == SHIPPED else str(self.path)

    @contextmanager
    def at(self, *keys: str | int, word: str = "") -> Iterator[None]:
        """An InputError of the block is raised again with this file and the line of `keys`, or of `word` from there on."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.path.name}, line {line_of(self.text, keys, word)}: {error}") from None


def shipped() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def read(word: str) -> Study:
    """The shipped study of that name, or that of a file. Raises InputError that names the line of what is wrong."""
    path = SHIPPED / f"{word}.toml" if word in shipped() else Path(word)
    if not path.is_file():
        raise unknown("study", word, shipped()) if path.suffix != ".toml" else InputError(f"There is no study {path}.")
    if not NAME.fullmatch(path.stem):
        raise InputError(f"study {path.stem!r} is not accepted: its runs are named after the file, in letters, digits and _.")
    try:
        text = path.read_text()
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is no TOML: {error}.") from None
    study = Study(path.stem, path, parsed(path, text, content), text)
    check_sources(study)
    if study.content.networks_of is not None:
        with study.at("networks_of"):
            study = replace(study, base=own(study.content.networks_of))
    if study.content.tables_of is not None:
        study = replace(study, content=with_tables_of(study, study.content.tables_of))
    check(study)
    return study


def own(word: str) -> Study:
    """The study of that name, which names its own networks."""
    found = read(word)
    if found.base is not None:
        raise InputError(f"study {found.name} is not accepted here: its networks are those of {found.base.name}.")
    return found


def with_tables_of(study: Study, source: TablesOf) -> Content:
    with study.at("tables_of", "study"):
        other = own(source.study).content
    for key in source.tables:
        with study.at("tables_of", "tables", word=key):
            if key not in other.tables:
                raise unknown(f"table of {source.study}", key, other.tables)
    tables = {key: other.tables[key] for key in source.tables}
    used = {name for table in tables.values() for rows in table.rows for name in rows.networks}
    networks = {name: entry for name, entry in other.networks.items() if name in used}
    return study.content.model_copy(update={"tables": tables, "networks": networks})


def check_sources(study: Study) -> None:
    """Raises InputError for what a file says that another study says for it."""
    content, given = study.content, study.content.model_fields_set
    for source, fields in SOURCES.items():
        for field in fields if source in given else ():
            with study.at(field):
                if field in given:
                    raise InputError(f"{field} is not accepted beside {source}: that study says it.")
    if not content.networks and not given & SOURCES.keys():
        with study.at("networks"):
            raise InputError("networks is missing: name one, as [networks.san10_pairwise], or networks_of.")


def parsed(path: Path, text: str, content: Mapping[str, Any]) -> Content:
    """Raises InputError for another version, for unknown fields, and for values of other types."""

    def told(keys: Sequence[str | int], sentence: str) -> InputError:
        return InputError(f"{path.name}, line {line_of(text, keys)}: {sentence}")

    if content.get("version") != VERSION:
        found = f"version {content['version']!r} is not accepted" if "version" in content else "the version is missing"
        raise told(["version"], f"{found}: this sanbench reads studies with version = {VERSION}.")
    try:
        return Content.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        keys = [key for key in first["loc"] if key != "[key]"]
        field = ".".join(map(str, keys))
        if first["type"] == "extra_forbidden":
            raise told(keys, str(unknown("field of a study", str(keys[-1]), schema_at(keys).model_fields))) from None
        if first["type"] == "missing":
            raise told(keys, f"{field} is missing.") from None
        raise told(keys, f"{field} = {str(first['input'])[:60]} is not accepted: {first['msg'].lower()}.") from None


def schema_at(keys: Sequence[str | int]) -> type[Part]:
    """What the table that holds the last of `keys` may have."""
    match keys:
        case ["networks", _, _]:
            return NetworkEntry
        case ["measure", _, _]:
            return Measure
        case ["tables", _, _]:
            return TableEntry
        case ["tables", _, "rows", _, _]:
            return Rows
    return Content


def check(study: Study) -> None:
    """Raises InputError for names that nothing explains, and for seeds that stand there twice."""
    content = study.content
    known = study.networks.content.networks
    for name in content.networks:
        with study.at("networks", name):
            if not NAME.fullmatch(name):
                raise InputError(f"network {name!r} is not accepted: runs are named after it, in letters, digits and _.")
    with study.at("seeds"):
        if len(set(content.seeds)) < len(content.seeds):
            raise InputError(f"seeds {content.seeds} is not accepted: each seed once.")

    def check_names(names: Sequence[str], *keys: str | int) -> None:
        for name in names:
            with study.at(*keys, word=name):
                if name not in known:
                    raise unknown("network", name, known)

    for number, measure in enumerate(content.measure):
        check_names(measure.networks or (), "measure", number, "networks")
    for key, table in content.tables.items():
        for number, rows in enumerate(table.rows):
            check_names([*rows.networks], "tables", key, "rows", number, "networks")
            with study.at("tables", key, "rows", number, "reference"):
                if rows.reference is not None and rows.reference not in rows.networks:
                    raise unknown("reference", rows.reference, rows.networks)


HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
KEY = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")


def line_of(text: str, keys: Sequence[str | int], word: str = "") -> int:
    """The line, from 1, of the value at `keys` in a TOML text: of the deepest of them that has a line of its own.

    With a `word` the first line from there on that holds it. tomllib tells lines of wrong syntax only.
    """
    lines = text.splitlines()
    places = key_lines(lines)
    depth = next((depth for depth in range(len(keys), 0, -1) if tuple(keys[:depth]) in places), 0)
    first = places.get(tuple(keys[:depth]), 1)
    return next((number for number in range(first, len(lines) + 1) if word in lines[number - 1]), first)


def key_lines(lines: Sequence[str]) -> dict[tuple[str | int, ...], int]:
    """By keys, entries of arrays of tables by their number, the line of each table and value."""
    places: dict[tuple[str | int, ...], int] = {}
    counts: dict[tuple[str | int, ...], int] = {}  # of arrays of tables: entries so far
    here: tuple[str | int, ...] = ()

    def whole(words: Sequence[str]) -> tuple[str | int, ...]:
        found: tuple[str | int, ...] = ()
        for word in words:
            found = (*found, word)
            if found in counts:
                found = (*found, counts[found] - 1)
        return found

    for number, line in enumerate(lines, start=1):
        if header := HEADER.match(line):
            words = split(header[2])
            if header[1] == "[[":
                array = (*whole(words[:-1]), words[-1])
                counts[array] = counts.get(array, 0) + 1
                places.setdefault(array, number)
            here = whole(words)
            for depth in range(1, len(here) + 1):
                places.setdefault(here[:depth], number)
        elif key := KEY.match(line):
            words = split(key[1])
            for depth in range(1, len(words) + 1):
                places.setdefault((*here, *words[:depth]), number)
    return places


def split(dotted: str) -> list[str]:
    """`tables."4 a".rows` -> ["tables", "4 a", "rows"]."""
    return [word.strip("\"'") for word in re.findall(r"[\w-]+|\"[^\"]*\"|'[^']*'", dotted)]
