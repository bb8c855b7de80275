"""The report as a reader meets it: in a browser, in LaTeX, in a folder of its own, and beside what an earlier report left."""

import base64
import io
import json
import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sanbench as sanbench_package
from sanbench.data import load_dataset
from sanbench.evaluation.corruptions import corrupt
from sanbench.evaluation.kinds import kind_of
from sanbench.evaluation.pixels import pixels_in
from sanbench.report import write_report
from sanbench.store.files import Store
from tests.support.browser import CHROMIUM, measured
from tests.support.commands import sanbench, snapshot
from tests.support.large_store import large_store
from tests.support.made_records import attacked, record, store_with
from tests.support.report_pages import page, pages, table

COMMITTED = Path(__file__).parents[1] / "results"
LATEX = next(filter(None, map(shutil.which, ("tectonic", "pdflatex"))), None)
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as of Debian's package chromium")


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> Path:
    """All formats of the report of the committed results, in a folder of its own."""
    folder = tmp_path_factory.mktemp("report")
    write_report(Store(COMMITTED), "md,csv,html,tex", folder)
    return folder


def small(folder: Path) -> Store:
    records = [
        record(),
        record("resnet26", correct=60),
        attacked("san10_pairwise", "8/255", 30),
        attacked("resnet26", "8/255", 10),
    ]
    return store_with(folder, *records)


def test_no_file_of_an_earlier_report_stays_and_no_other_file_goes(tmp_path):
    store = small(tmp_path)
    (tmp_path / "mine.csv").write_text("a\n1\n")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "notes.md").write_text("mine")
    first = write_report(store, "md,csv,html,tex").paths
    assert any("/images/" in path for path in first) and str(tmp_path / "attack.csv") in first
    store.remove([each for each in store.records() if each.kind == "attack"])
    second = write_report(store, "md,csv").paths
    assert not [path for path in set(first) - set(second) if Path(path).exists()]
    assert not (tmp_path / "report" / "images").exists()
    assert (tmp_path / "mine.csv").exists() and (tmp_path / "report" / "notes.md").exists()


def test_a_list_of_files_that_was_tampered_with_removes_nothing_elsewhere(tmp_path):
    store = small(tmp_path / "results")
    kept = [tmp_path / "mine.csv", tmp_path / "results" / "records" / "x.csv"]
    for path in kept:
        path.write_text("mine")
    (tmp_path / "results" / "report").mkdir()
    names = json.dumps(["../mine.csv", "records/x.csv", str(kept[0]), 1, "benchmarks.jsonl"])
    (tmp_path / "results" / "report" / "files.json").write_text(names)
    write_report(store, "csv")
    assert all(path.exists() for path in kept)


def test_a_store_that_is_read_only_is_reported_elsewhere(tmp_path):
    small(tmp_path / "results")
    before = snapshot(tmp_path / "results")
    for path in [tmp_path / "results", *(tmp_path / "results").rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    outcome = sanbench("report", "--results", tmp_path / "results", "--output", tmp_path / "told", "--format", "md,html")
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "told" / "report.html").exists() and "san10_pairwise" in pages(tmp_path / "told")
    assert snapshot(tmp_path / "results") == before
    outcome = sanbench("report", "--results", tmp_path / "results", "--output", tmp_path / "told" / "report.md")
    assert outcome.exit_code == 2 and "is no folder" in outcome.stderr
    assert sanbench("report", "--results", tmp_path / "results", "--output", tmp_path / "no" / "such").exit_code == 2


def test_the_answer_is_made_from_the_paired_tests(tmp_path):
    """80 and 50 of 100 images right, 30 alone: clear. 12 and 10: not. Targeted attacks against the paper's finding."""
    turned = {"kind": "rotation", "setting": {"angle": 90}}
    records = [record(), record("resnet26", correct=50), record(correct=12, **turned), record("resnet26", correct=10, **turned)]
    records += [attacked("san10_pairwise", "8/255", 5, "pgd-targeted"), attacked("resnet26", "8/255", 60, "pgd-targeted")]
    write_report(store_with(tmp_path, *records), "md")
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"- san10_pairwise has 80\.0 upright, resnet26 50\.0: difference 30\.0 \[[\d.]+, [\d.]+\]\.\n", text)
    assert re.search(
        r"keeps 12\.0 of 80\.0 at 90°, resnet26 10\.0 of 50\.0: difference 2\.0 \[-[\d.]+, [\d.]+\] \(no clear", text
    )
    assert "targeted attacks (table 10). Here san10_pairwise: its one test (n 100) is clearly against it." in text
    assert re.search(
        r"rotated images \(table 9\). Here san10_pairwise: its one test \(n 100\) is not clear; "
        r"what is not clear may be from -[\d.]+ to \+[\d.]+ points\.\n",
        text,
    )
    assert "There are 1 of accuracy, 1 of rotation, 1 of attack:" in text
    assert "a hint for the paper's networks and no test of them" in text


def test_what_is_said_of_the_paper_counts_the_tests_of_the_tables(tmp_path):
    """Three quarter turns: 30 more right alone, 2 more, 10 fewer; the first was measured on fewer images too."""
    turns = {90: (60, 30), 180: (52, 50), 270: (20, 45)}
    records = [record(), record("resnet26")]
    for angle, right in turns.items():
        made = {"kind": "rotation", "setting": {"angle": angle}}
        records += [record(name, correct=n, **made) for name, n in zip(("san10_pairwise", "resnet26"), right)]
    few = {"kind": "rotation", "setting": {"angle": 90}, "images": 20}
    records += [record(correct=15, **few), record("resnet26", correct=14, **few)]
    write_report(store_with(tmp_path, *records), "md")
    text = (tmp_path / "report.md").read_text()
    assert "san10_pairwise: of 3 tests (n 100) 1 are clearly for it and 1 clearly against it; what is not clear may be" in text
    assert "There are 1 of accuracy, 3 of rotation:" in text and "clearly worse: rotation 1 and 1 of 3." in text
    lines = table(page(tmp_path, "comparisons"), kind_of("rotation").title)
    assert [line["n"].split(" of ")[0] for line in lines] == ["100"] * 3
    for line, (san, resnet) in zip(lines, turns.values()):  # Holm over what the table lists
        assert line["difference"].lstrip("*").startswith(f"{san - resnet:+.1f}")
    smallest = min(float(line["p"]) for line in lines)
    assert min(float(line["p, Holm"]) for line in lines) == pytest.approx(3 * smallest, rel=0.05)


def test_networks_of_one_name_are_told_apart_by_their_runs(tmp_path):
    other = record(weights="b" * 64, run="second", training={"seed": 8})
    write_report(store_with(tmp_path, record(), other), "md")
    text = (tmp_path / "report.md").read_text()
    assert "| san10_pairwise, run-san10_pairwise |" in text and "| san10_pairwise, second |" in text


def test_a_page_lists_the_images_that_one_network_alone_has_right(tmp_path):
    """With the pictures that the store keeps of them, and only of them."""
    classes = ["coat", "<b>bag</b>"]
    san, resnet = (attacked(name, "8/255", right) for name, right in (("san10_pairwise", 30), ("resnet26", 28)))
    store = store_with(tmp_path, *(each.model_copy(update={"classes": classes}) for each in (san, resnet)))
    for index in (5, 29):
        store.write_picture(san, f"{index:05d}-coat-clean", np.full((4, 4, 3), index, np.uint8))
    write_report(store, "html")
    (path,) = (tmp_path / "report" / "images").glob("san10*")
    assert f'href="report/images/{path.name}"' in (tmp_path / "report.html").read_text()
    text = path.read_text()
    first, second = text.split("<h2>")[1:]
    assert first.startswith("Only san10_pairwise is right: 2 of 100 of 2,000") and second.startswith(
        "Only resnet26 is right: 0 of"
    )
    assert re.findall(r"<th scope=row>(\d+)<td>coat<td>coat<td>—<td>(.*?)<td>—", first) == [
        (index, "&lt;b&gt;bag&lt;/b&gt;") for index in ("28", "29")
    ]
    assert text.count("data:image/png;base64,") == 1 and "san10_pairwise: clean" in first


def test_examples_show_what_the_networks_saw(tmp_path):
    """Of the committed results, whose images the package has: upright, turned and corrupted, with all predictions."""
    outcome = sanbench("report", "--results", COMMITTED, "--output", tmp_path, "--format", "html", "--pixels", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    assert 'href="report/images/examples-0.html"' in (tmp_path / "report.html").read_text()
    text = (tmp_path / "report" / "images" / "examples-0.html").read_text()
    images = text.split("<h2>")[1:]
    assert len(images) == 12
    for image in images:
        upright, turned, corrupted, attack = image.split("<h3>")[1:]
        shown = [re.findall(r'src="data:image/png;base64,([^"]+)"', part) for part in (upright, turned, corrupted)]
        (before,), (after,) = (
            [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in part] for part in shown[:2]
        )
        assert np.array_equal(np.rot90(before, -1), after)
        assert turned.count("<td>right<") >= 1 and turned.count("<td>wrong<") >= 1
        assert "pgd" in attack


def test_pixels_of_a_corruption_are_those_that_the_network_saw(tmp_path):
    images = load_dataset("fashion10k", "test")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    found = sanbench_package.evaluate(model, "fashion10k", "corrupt:fog:3", limit=5)
    (record,) = [record for record in found.records if record.kind == "corruption"]
    index = int(found.rows["index"][0])
    (seen,) = pixels_in(tmp_path)(record, [index]) or []
    assert (seen == corrupt(images.read([index])[0], "fog", 3, 0, index).permute(1, 2, 0).numpy()).all()


def test_pixels_of_other_images_are_not_shown(tmp_path):
    one = record(kind="rotation", setting={"angle": 90})  # its fingerprint is that of no data set
    assert pixels_in(tmp_path)(one, [0, 1]) is None
    own = Store(COMMITTED).records()
    assert pixels_in(tmp_path)(next(each for each in own if each.kind == "attack"), [0]) is None
    assert len(pixels_in(tmp_path)(next(each for each in own if each.kind == "accuracy"), [3, 0]) or []) == 2


def test_html_is_one_file_under_three_megabytes(committed):
    text = (committed / "report.html").read_text()
    assert len(text.encode()) < 3e6
    assert not re.findall(r"""(?:src|href)=["'](?!data:|report/images/|#)|url\(|@import|http-equiv""", text)
    linked = set(re.findall(r'href="(report/images/[^"]*)"', text))
    assert linked and all((committed / name).is_file() for name in linked)
    assert len(list((committed / "report" / "images").iterdir())) == len(linked)
    assert "report/images/examples-0.html" in linked


def test_every_link_of_the_markdown_leads_somewhere(committed):
    for path in [committed / "report.md", *(committed / "report").glob("*.md")]:
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / target).is_file(), (path.name, target)


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(committed, width, dark, tmp_path):
    found = measured(committed / "report.html", tmp_path, width, dark)
    assert found["inner"] == width and found["dark"] == dark
    assert found["width"] == width and found["wide"] == []
    assert found["errors"] == [] and found["requests"] == []
    assert found["texts"] > 1000 and found["least"][0] >= 4.5, found["least"]
    assert found["small"] == [] and found["sticky"] == 0
    assert len(found["pictures"]) > 8 and all(found["pictures"])


@pytest.fixture(scope="module")
def illustrated(tmp_path_factory) -> Path:
    """The pages of images of the committed results, with the images themselves."""
    folder = tmp_path_factory.mktemp("illustrated")
    write_report(Store(COMMITTED), "html", folder, pixels_in(folder))
    return folder / "report" / "images"


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["examples", "rotation", "attack", "corruption"])
def test_a_browser_shows_pages_of_images(illustrated, kind, width, dark, tmp_path):
    """The longest of each kind."""
    path = max(illustrated.glob(f"*{kind}*"), key=lambda path: path.stat().st_size)
    found = measured(path, tmp_path, width, dark)
    assert found["inner"] == width and found["dark"] == dark
    assert (found["width"], found["wide"], found["errors"], found["requests"]) == (width, [], [], [])
    assert found["texts"] > 50 and found["least"][0] >= 4.5, found["least"]
    assert found["small"] == [] and found["sticky"] == 0


@pytest.mark.slow
@in_chromium
def test_no_script_is_needed_to_read(committed, tmp_path):
    with_script = measured(committed / "report.html", tmp_path, 1280)
    without = measured(committed / "report.html", tmp_path, 1280, script=False)
    assert without["texts"] == with_script["texts"] and without["height"] == with_script["height"]


@pytest.mark.slow
@in_chromium
def test_the_browser_test_sees_what_is_wrong(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><html><head></head><body style="background:#fff"><p style="color:#bbb;width:2000px">faint</p>'
        '<img src="https://example.invalid/x.png"><script>console.error("loud"); nosuch();</script></body></html>'
    )
    found = measured(page, tmp_path, 390)
    assert found["width"] > 1900 and "P" in found["wide"] and found["least"][0] < 2
    assert any("loud" in word for word in found["errors"]) and len(found["errors"]) >= 2
    assert found["requests"] == ["https://example.invalid/x.png"]


@pytest.mark.slow
@pytest.mark.skipif(LATEX is None, reason="needs tectonic or pdflatex, as of Debian's package texlive-latex-recommended")
def test_latex_compiles_and_fits_an_article(committed, tmp_path):
    packages = r"\usepackage[T1]{fontenc}\usepackage{booktabs}\usepackage{array}"
    fragment = (committed / "report.tex").read_text()
    assert fragment.startswith("% Written by `sanbench report`: a fragment")
    (tmp_path / "report.tex").write_text(fragment)
    (tmp_path / "article.tex").write_text(
        rf"\documentclass{{article}}{packages}\begin{{document}}\input{{report.tex}}\end{{document}}"
    )
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in LATEX else ["--keep-logs"]
    run = subprocess.run(
        [LATEX, *options, "article.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300
    )
    assert run.returncode == 0, run.stdout[-2000:]
    log = (tmp_path / "article.log").read_text(errors="replace")
    assert re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log) == []


@pytest.mark.slow
def test_a_large_study_takes_seconds(tmp_path):
    """40 networks, 1,000 classes, 4,480 records of 500 images. On the processor: others may use the machine."""
    store = large_store(tmp_path)
    begin = time.process_time()
    write_report(store, "md,csv")
    documents = time.process_time() - begin
    begin = time.process_time()
    paths = write_report(store, "html").paths
    pages_too = time.process_time() - begin
    assert documents < 20 and pages_too < 60  # 14 and 31 on a busy machine, with 2,912 pages of images
    assert len(paths) > 2000
    assert os.path.getsize(tmp_path / "report.html") < 3e6
    for path in paths[1:]:
        assert os.path.getsize(path) < 3e6
