"""Snakemake's report and DVC's plots: one page each that asks no network for anything, opened in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from assyllm import params as P
from assyllm.figures import about, topic
from tiny.study import ROOT, dvc_environment, snakemake

pytestmark = pytest.mark.workflow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
# a remark by the style sheet that Snakemake builds in
REMARKS = ("cdn.tailwindcss.com should not be used in production",)
NAMES = P.load(ROOT / "params.yaml").figures.names


@pytest.fixture(scope="module")
def report(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    snakemake(study, "--cores", "1", "--report", str(path))
    return path


@pytest.fixture(scope="module")
def plots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plots")
    command = [sys.executable, "-m", "dvc", "plots", "show", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=dvc_environment(), capture_output=True, text=True)
    if "not inside of a DVC repository" in done.stderr or "not a git" in done.stderr.lower():
        pytest.skip("not a checkout")
    assert done.returncode == 0, done.stderr
    return folder / "index.html"


class References(HTMLParser):
    """What a page's tags load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]


def references(path: Path) -> list[str]:
    parser = References()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.found


def opened(page: Path, folder: Path) -> tuple[str, list[str], list[str]]:
    """The page as it stands after its scripts, what they said, and what it asked a network for (which is not there)."""
    assert BROWSER is not None
    log = folder / "requests.json"
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}", "--virtual-time-budget=8000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    # what a browser asks for by itself has no origin
    asked = [e["url"] for e in events if e.get("initiator", "not an origin") != "not an origin"]
    asked = [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    return done.stdout, [line for line in said if not any(remark in line for remark in REMARKS)], asked


def test_every_figure_has_a_topic_and_a_first_line() -> None:
    assert not [name for name in NAMES if topic(name).startswith("5")]
    assert not [name for name in NAMES if about(name) == name or not about(name).endswith(".")]


def test_the_report_is_one_file_that_refers_to_no_other(report: Path) -> None:
    outside = [r for r in references(report) if r and not r.startswith(("data:", "#", "javascript:"))]
    assert not outside
    text = report.read_text(encoding="utf-8")
    assert "1 What was found" in text
    assert about("fleet").split(" (")[0] in text


def test_the_plots_are_the_figures_and_refer_to_files_beside_them(plots: Path) -> None:
    found = references(plots)
    assert len(found) == len(NAMES)
    assert all((plots.parent / name).is_file() for name in found)


needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser here: none of {', '.join(BROWSERS)} on PATH")


@needs_browser
def test_the_browser_tells_of_requests_and_errors(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script src='https://cdn.example.org/x.js'></script><script>undefined_name()</script>")
    _, said, asked = opened(page, tmp_path)
    assert asked == ["https://cdn.example.org/x.js"]
    assert any("undefined_name is not defined" in line for line in said)


@needs_browser
def test_the_report_opens_offline_without_errors(report: Path, tmp_path: Path) -> None:
    page, said, asked = opened(report, tmp_path)
    assert (said, asked) == ([], [])
    assert re.search(r"<nav[^>]*>.*1 What was found", page, re.S), "its scripts did not draw the page"


@needs_browser
def test_the_plots_open_offline_without_errors(plots: Path, tmp_path: Path) -> None:
    page, said, asked = opened(plots, tmp_path)
    assert (said, asked) == ([], [])
    assert page.count("<img") == len(NAMES)
