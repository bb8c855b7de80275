"""Debian's Chromium without a window: what it measures of a page, and what it complains of."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

MEASURE = """
<script>
addEventListener("load", () => {
  const luminance = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (!colour.endsWith(", 0)") && colour !== "transparent") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  document.querySelectorAll("details").forEach((each) => (each.open = true));
  const contrasts = [], small = [];
  document.querySelectorAll("body *").forEach((element) => {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text || element.closest("script, style, title")) return;
    const style = getComputedStyle(element);
    const colour = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const pair = [luminance(colour), luminance(ground(element))], one = Math.min(...pair), two = Math.max(...pair);
    contrasts.push([(two + 0.05) / (one + 0.05), element.tagName + " " + element.textContent.trim().slice(0, 30)]);
    if (parseFloat(style.fontSize) < 10) small.push(element.tagName);
  });
  contrasts.sort((a, b) => a[0] - b[0]);
  const wide = [...document.querySelectorAll("body *")].filter((element) =>
    !element.closest(".scroll") && element.getBoundingClientRect().right > innerWidth + 1).map((element) => element.tagName);
  const first = document.querySelector(".scroll tbody th"), before = first && first.getBoundingClientRect().left;
  if (first) first.closest(".scroll").scrollLeft = 200;
  document.documentElement.dataset.measured = JSON.stringify({
    width: document.documentElement.scrollWidth, inner: innerWidth, least: contrasts[0], texts: contrasts.length, wide, small,
    pictures: [...document.querySelectorAll("figure .panels svg")].map((svg) => svg.getAttribute("aria-label")),
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
    errors: window.faults, sticky: first ? first.getBoundingClientRect().left - before : 0,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, height: document.documentElement.scrollHeight,
  });
});
</script>
"""
LISTEN = """<script>window.faults = [];
addEventListener("error", (event) => window.faults.push(event.message || event.target.tagName), true);
["error", "warn"].forEach((name) => (console[name] = (...words) => window.faults.push(words.join(" "))));</script>
"""


def measured(page: Path, folder: Path, width: int, dark: bool = False, script: bool = True) -> dict[str, Any]:
    """What MEASURE finds in a copy of `page` in a frame of `width`, whose folded tables are open."""
    text = page.read_text()
    assert text.count("<head>") == 1
    text = text if script else re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    (folder / "copy.html").write_text(text.replace("<head>", f"<head>{LISTEN}") + MEASURE)
    frame = f'<!doctype html><iframe id="f" src="copy.html" style="border:0;width:{width}px;height:900px"></iframe>'
    tell = """<script>const f = document.getElementById("f");
    const tell = () => (document.body.dataset.told = f.contentDocument.documentElement.dataset.measured);
    f.onload = () => setTimeout(tell, 50);</script>"""
    (folder / "frame.html").write_text(frame + tell)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [
        CHROMIUM,
        *options,
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=20000",
    ]
    run = subprocess.run(
        [*command, "--dump-dom", (folder / "frame.html").as_uri()], capture_output=True, text=True, timeout=180, check=True
    )
    (told,) = re.findall(r'data-told="([^"]*)"', run.stdout)
    return json.loads(unescape(told))
