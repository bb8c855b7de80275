"""Names that a stranger chose: printed, in reports and in tables as they are, without any effect."""

import csv
import io
from xml.etree import ElementTree

import pytest

from sanbench.printable import one_line, printable
from sanbench.report import write_report
from sanbench.report.charts import Panel, Range, Series
from sanbench.report.html import blocks_html, svg
from sanbench.report.latex import latex_text
from sanbench.report.rendering import Cell, Heading, Items, Picture, Table, Text, csv_text, markdown
from sanbench_cli import console as printing
from tests.support.commands import sanbench
from tests.support.made_records import image_set, record, store_with
from tests.support.report_pages import pages, tables

NAMES = ["exp[lr=0.1]", "[/x]", "[bold]a[/bold]", ":smile:", "a|b", "<script>alert(1)</script>", "=cmd|' /C x'!A0"]
NAMES += ["![x](http://x/y.png)"]
STEERING = ["a\x1b[31mb", "a\rb", "\u202egnp.exe", "a\x07", "\udcff", "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is(name, capsys, monkeypatch):
    text = io.StringIO()
    plain = printing.PlainConsole(file=text, width=200)
    from rich.table import Table as RichTable

    table = RichTable("run")
    table.add_row(name)
    plain.print(name)
    plain.print(table)
    assert text.getvalue().count(name) == 2


@pytest.mark.parametrize("name", STEERING)
def test_what_steers_a_terminal_is_printed_as_an_escape(name):
    text = io.StringIO()
    printing.PlainConsole(file=text, width=200).print(name)
    assert all(c.isprintable() or c == "\n" for c in text.getvalue())
    assert one_line(name).isprintable() and one_line(name).startswith(name[0] if name[0].isprintable() else "\\")
    assert printable("a\nb — ε\u00a0= 8/255") == "a\nb — ε\u00a0= 8/255"


@pytest.mark.parametrize("name", [*NAMES, *STEERING])
def test_errors_name_it_in_one_line(name, tmp_path):
    outcome = sanbench("export", name, "--output", tmp_path / "x", "--runs", tmp_path)
    assert outcome.exit_code in (1, 2)
    assert outcome.stderr.startswith("Error: ") and outcome.stderr.count("\n") == 1
    shown = repr(name)[1:-1] if name not in NAMES else name.replace("'", "\\'")
    assert shown in outcome.stderr or one_line(name) in outcome.stderr or name.partition(":")[0] in outcome.stderr


@pytest.mark.parametrize("name", [*NAMES, *STEERING])
def test_documents_hold_no_more_than_the_name(name):
    picture = Picture([Panel(name, name, [Series(name, {name: Range(0.5, 0.4, 0.6)})])], name, "x.svg")
    table = Table([{"run": name, name: Cell(name, bold=True)}], name)
    blocks = [Heading(name, 2), Text(f"Of {name}."), Items([name]), table, picture]
    text = markdown(blocks)
    assert "<script" not in text and "](http" not in text
    lines = [line for line in text.split("\n") if line.startswith("|")]
    assert len(lines) == 3 and len({line.replace("\\|", "").count("|") for line in lines}) == 1
    html, tex = blocks_html(blocks), latex_text(blocks)
    assert "<script" not in html + svg(picture) and html.count("<td>") == 1 and html.count("<th scope") == 3
    assert ElementTree.fromstring(svg(picture)) is not None
    assert tex.count(r" \\") == 2 and "\x1b" not in text + tex + html


def test_numbers_and_figures_of_reports_are_untouched():
    cells = {"a": "12.3 [10.1, 14.9]", "b": "< 0.001", "c": "−1.5", "d": "**x**"}
    assert markdown([Table([cells])]).splitlines()[-1] == "| 12.3 [10.1, 14.9] | < 0.001 | −1.5 | **x** |"


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", " =1", "\t=1"])
def test_no_cell_of_a_csv_is_a_formula(text):
    assert csv_text(text) == f"'{text}"
    assert [csv_text(value) for value in (-1.5, None, "8/255", "a=b", 3)] == [-1.5, None, "8/255", "a=b", 3]


FAULTS = [
    (MemoryError(), 1, "not enough memory: a smaller --batch-size takes less"),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"),
        1,
        "--batch-size",
    ),
    (OSError(28, "No space left on device", "/x/y"), 1, "/x/y cannot be used: No space left on device."),
    (KeyError("width"), 1, "A fault of sanbench, please report it: 'width' (KeyError). `sanbench --debug ...`"),
    (AssertionError(), 1, "no reason is given (AssertionError)"),
    (KeyboardInterrupt(), 130, "Interrupted."),
]


@pytest.mark.parametrize(("fault", "code", "words"), FAULTS, ids=lambda value: type(value).__name__)
def test_what_fails_is_a_sentence(fault, code, words, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise fault

    monkeypatch.setattr("sanbench.runs.evaluated.load_evaluated", fails)
    outcome = sanbench("accuracy", "x", "--runs", tmp_path, "--results", tmp_path)
    assert outcome.exit_code == code
    assert words in outcome.stderr and outcome.stderr.count("\n") == 1, outcome.stderr


def test_progress_of_a_hostile_task_is_printed_as_it_is(monkeypatch):
    from sanbench.progress import Progress

    text = io.StringIO()
    monkeypatch.setattr(printing, "console", printing.PlainConsole(file=text, force_terminal=True, width=100))
    with printing.progress() as show:
        show(Progress("[/x] run", 1, 2))
    assert "[/x] run" in text.getvalue()


def test_a_report_of_hostile_names_has_no_markup_and_no_formula(tmp_path):
    names = {
        "run": "=cmd|' /C x'!A0",
        "classes": ["<script>x</script>", "a|b", "![x](http://x)", "a\nb"],
    }
    hostile = [record("san10_pairwise", **names), record("resnet26", **names, data=image_set(name="folder:a|b$x$\n<b>"))]
    store = store_with(tmp_path, *hostile)
    write_report(store, "md,csv,html,tex")
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "<script>x" not in text and "\n<b>" not in text
        assert text.count("<script") == (name == "report.html")  # the one that sorts
        assert name == "report.html" or "](http" not in text
    assert "&lt;script&gt;x&lt;/script&gt;" in (tmp_path / "report.html").read_text()
    for text in (pages(tmp_path), *(path.read_text() for path in (tmp_path / "report").glob("*.svg"))):
        assert "<script" not in text and "](http" not in text
    assert tables(pages(tmp_path))
    lines = list(csv.DictReader((tmp_path / "accuracy.csv").open(newline="")))
    assert [line["run"] for line in lines] == ["'=cmd|' /C x'!A0"] * 2
