"""The rooms of the library and the direction of their imports: a room imports from those before it on the list."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = [
    "errors",
    "late",
    "printable",
    "progress",
    "device",
    "relation",
    "store",
    "ops",
    "models",
    "data",
    "runs",
    "evaluation",
    "explain",
    "training",
    "studies",
]
ROOMS += ["report", "bench"]
ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "sanbench").rglob("*.py"))
FRONT_DOOR = ROOT / "sanbench/__init__.py"  # names what is inside, of any room
LAYERS = ["sanbench", *(f"sanbench.{room}" for room in ROOMS), "sanbench_cli"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(source: str) -> Iterator[str]:
    """Every module that the source names: by an import anywhere in it, also within functions and under TYPE_CHECKING,
    and by a string such as `sanbench.evaluation.rotations:parse`, which a table hands to import_module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module=module, level=0):
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.ImportFrom():
                yield "relative"
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.Constant(value=str(text)) if text.startswith(("sanbench.", "sanbench_cli.")) and " " not in text:
                yield text


def layer(module: str) -> int | None:
    """The place in LAYERS of a module, which may end in an object's name; None of what is not the library's."""
    first, _, rest = module.partition(".")
    if first == "relative":
        raise AssertionError("Imports are absolute.")
    if first not in ("sanbench", "sanbench_cli"):
        return None
    room = rest.split(".")[0].split(":")[0]
    name = f"{first}.{room}" if first == "sanbench" and room in ROOMS else first
    return LAYERS.index(name)


def upward(path: Path, source: str) -> list[str]:
    """What a file imports from a room behind its own."""
    room = path.relative_to(ROOT / "sanbench").with_suffix("").parts[0]
    allowed = LAYERS.index(f"sanbench.{room}")
    return [module for module in imported(source) if (found := layer(module)) is not None and found > allowed]


@pytest.mark.parametrize("path", [path for path in FILES if path != FRONT_DOOR], ids=relative)
def test_imports_point_down_the_list_only(path):
    assert upward(path, path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import sanbench.training.loop",
        "from sanbench.training import loop",
        "from sanbench import training",
        "def run():\n    from sanbench.studies.worker import Worker",
        "if TYPE_CHECKING:\n    from sanbench.report import Report",
        "class A:\n    def run(self):\n        import sanbench_cli.main",
        "TABLE = {'bench': 'sanbench.bench.timing:run'}",
    ],
)
def test_an_import_that_points_up_is_found_wherever_it_stands(source):
    assert len(upward(ROOT / "sanbench/evaluation/loop.py", source)) == 1


def test_every_room_is_on_the_list():
    names = {path.relative_to(ROOT / "sanbench").with_suffix("").parts[0] for path in FILES} - {"__init__"}
    assert names == set(ROOMS)


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=relative)
def test_each_folder_says_in_a_line_what_lives_there(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert text.splitlines()[:1] == [text] and text.endswith(".") and len(text.split()) > 4


WRITERS = {"to_csv", "to_parquet", "to_json", "write_table", "savefig", "save", "write_text", "write_bytes", "dump", "mkdir"}
WRITING_MODES = {"w", "wb", "a", "ab", "x", "xb", "r+", "r+b"}
WRITING = {  # what each file writes: only the store writes results
    "sanbench/store/files.py": "records, rows, benchmarks, pictures and the report",
    "sanbench/store/rows.py": "rows",
    "sanbench/store/claims.py": "claims",
    "sanbench/models/checkpoints.py": "weights",
    "sanbench/models/export.py": "exported programs",
    "sanbench/runs/run.py": "a run's configuration and log",
    "sanbench/training/loop.py": "calls its own save, which writes checkpoints",
    "sanbench/data/check.py": "a list of unreadable files, where --list asks for it",
    "sanbench/data/prepare.py": "class folders",
    "sanbench/data/shrink.py": "smaller images",
    "sanbench/evaluation/distortions/digital.py": "JPEG in memory",
    "sanbench/bench/reading.py": "images to time decoders on",
    "sanbench/bench/photographs.py": "a made set laid out like ImageNet",
    "sanbench/ops/gpu/launch.py": "compiled code, in a temporary folder",
    "sanbench/report/__init__.py": "the text of a table, which the store writes",
    "sanbench/report/gallery.py": "a picture into memory, for a page that the store writes",
}


def writes(source: str) -> bool:
    """Whether a function or method that writes files is called: one of WRITERS, or open with a mode that writes."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        values = [node.value for node in [*node.args, *(k.value for k in node.keywords)] if isinstance(node, ast.Constant)]
        if name in WRITERS or (name == "open" and WRITING_MODES & set(values)):
            return True
    return False


def test_only_the_store_writes_results():
    assert {relative(path) for path in FILES if writes(path.read_text())} == set(WRITING)
    assert "to_csv(index=False)" in (ROOT / "sanbench/report/__init__.py").read_text()  # a text, not a file
