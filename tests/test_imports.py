"""The rooms and the direction of their imports: what is further down may import what is further up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = ["errors", "progress", "allocator", "device", "records", "ops", "models", "data", "evaluation", "training"]
ROOMS += ["benchmark", "kernels", "roofline", "figures", "report", "reproduce"]
ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "sanbench").rglob("*.py"))


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_list_only(path):
    own = path.relative_to(ROOT / "sanbench").with_suffix("").parts[0]
    if own == "__init__":
        return  # the front door names what is inside
    imported = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported.append(node.module)
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    assert not [module for module in imported if module.split(".")[0] == "sanbench_cli"]
    inside = [room(module) for module in imported if module.startswith("sanbench.")]
    assert [name for name in inside if ROOMS.index(name) > ROOMS.index(own)] == []


def test_every_room_is_on_the_list():
    names = {path.relative_to(ROOT / "sanbench").with_suffix("").parts[0] for path in FILES} - {"__init__"}
    assert names == set(ROOMS)


def test_only_records_writes_results():
    """No other file of the library writes tables or records (checkpoints and runs are not results)."""
    writers = ("to_csv(", "to_parquet(", "write_table(", "savefig(", "write_text(")
    allowed = {"records.py", "__init__.py", "runs.py"}  # report makes a text of a table; runs writes a run's config.json
    found = {path.name for path in FILES if any(word in path.read_text() for word in writers)}
    assert found <= allowed
    assert "to_csv(index=False)" in (ROOT / "sanbench/report/__init__.py").read_text()  # a text, not a file


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["attack", "--help"], ["--version"]])
def test_help_does_not_wait_for_torch(arguments):
    code = "import sys\nfrom sanbench_cli.main import app\n"
    code += f"try: app({arguments!r})\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
