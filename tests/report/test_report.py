"""The report: one file that needs nothing else, complete, and right in a real browser."""

from __future__ import annotations

import html.parser
import http.server
import json
import queue
import re
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import called, copy_results
from pdunroll.evaluation.quality import KEY
from pdunroll.files import write_json, write_table
from pdunroll.report import registry
from pdunroll.report.media import inline

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECTIONS = ["figures", "verdicts", "results", "more", "operators", "speech", "origin"]
VERDICTS = ("holds", "does not hold", "undecided")


@pytest.fixture(scope="module")
def page(smoke, tmp_path_factory) -> Path:
    """The report of the smoke chain, with verdicts, quality and audio made up."""
    folder = tmp_path_factory.mktemp("report")
    copy_results(smoke, folder)
    outputs = folder / "outputs/smoke"
    write_table(outputs / "verdicts.csv", [
        {"claim": f"claim-{number}", "primal_mask": "active_set", "step_norm": "frobenius", "verdict": verdict,
         "estimate": 0.5, "low": None, "high": None, "unit": "%", "statement": f"Statement <{number}> & more.",
         "evidence": f"Evidence {number}."}
        for number, verdict in enumerate(VERDICTS)
    ])  # fmt: skip
    write_table(outputs / "quality_summary.csv", [
        {**dict.fromkeys(KEY), "restoration": "dct", "metric": metric, "mean": 12.345, "sentences": 2}
        for metric in ("sdr_db", "si_sdr_db", "stoi")
    ])  # fmt: skip
    shutil.rmtree(outputs / "audio", ignore_errors=True)
    (outputs / "audio").mkdir()
    entries = []
    for restoration in ("dct", "original"):
        soundfile.write(outputs / f"audio/0-{restoration}.wav", 0.5 * np.sin(np.arange(16000) / 9), 16000)
        entries.append({
            **dict.fromkeys(KEY), "name": "a sentence", "restoration": restoration, "seconds": 1.0,
            "file": f"0-{restoration}.wav",
        })  # fmt: skip
    write_json(outputs / "audio/index.json", entries)
    assert called("report", "experiment=smoke", cwd=folder) == 0
    return outputs / "report.html"


class Reader(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]


def test_the_file_needs_no_other(page):
    reader = Reader(page.read_text())
    assert all(link.startswith(("data:", "#")) for link in reader.links)
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert not re.search(r"@import|url\(\s*['\"]?http", page.read_text())


def test_every_part_is_there(page):
    text = page.read_text()
    reader = Reader(text)
    assert {"verdicts", "results", "figures", "operators", "speech", "origin"} <= set(reader.ids)
    assert reader.tags.count("audio") == 2
    assert reader.tags.count("svg") == 9  # eight figures and the training curves
    assert "Statement &lt;1&gt; &amp; more." in text
    assert [*re.findall(r'class="verdict (\w+)"', text)] == ["holds", "fails", "undecided"]
    assert "12.345" in text
    assert text.index("<b>original<") < text.index("<b>dct<")  # in the order of listening, not of the index


def test_ids_of_inlined_figures_do_not_meet():
    text = (
        '<?xml version="1.0"?><svg><metadata>x</metadata><path id="a"/><use xlink:href="#a" clip-path="url(#a)"/></svg>'
    )
    expected = '<svg role="img" aria-label="T"><path id="p-a"/><use xlink:href="#p-a" clip-path="url(#p-a)"/></svg>'
    assert inline(text, "p", "T") == expected


def test_parts_that_have_not_been_made_name_their_command(smoke, call, tmp_path):
    copy_results(smoke, tmp_path)
    for name in ("verdicts.csv", "quality_summary.csv"):
        (tmp_path / "outputs/smoke" / name).unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "outputs/smoke/audio", ignore_errors=True)
    assert call("report", "experiment=smoke").status == 0
    text = (tmp_path / "outputs/smoke/report.html").read_text()
    for stage in ("verdicts", "quality"):
        assert f"python -m pdunroll {stage} experiment=smoke" in text


def test_a_section_of_ones_own_is_one_function(smoke, call, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "SECTIONS", dict(registry.SECTIONS))
    registry.section("mine", "My heading")(lambda experiment: f"<p>{len(experiment.training)} trainings</p>")
    registry.section("empty", "Nothing")(lambda experiment: "")
    copy_results(smoke, tmp_path)
    assert call("report", "experiment=smoke").status == 0
    text = (tmp_path / "outputs/smoke/report.html").read_text()
    assert '<section id="mine">\n<h2>My heading</h2>\n<p>4 trainings</p>' in text
    assert "Nothing" not in text


def test_the_papers_figures_come_first_and_verdicts_next(page):
    ids = [name for name in Reader(page.read_text()).ids if name in SECTIONS]
    assert ids == SECTIONS


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("evaluation.csv", "pdunroll evaluate"),
        ("figures", "pdunroll figures"),
        ("provenance.json", "provenance.json"),
    ],
)
def test_what_it_cannot_do_without_is_named(smoke, call, tmp_path, missing, named):
    copy_results(smoke, tmp_path)
    path = tmp_path / "outputs/smoke" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = tmp_path / "outputs/smoke/report.html"
    report.write_text("an older one")
    done = call("report", "experiment=smoke")
    assert done.status == 2
    assert named in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert report.read_text() == "an older one"


PROBE = """<!doctype html><iframe src="report.html" style="width: 390px; height: 800px; border: 0"></iframe><script>
onload = async () => {
  const page = document.querySelector("iframe").contentDocument;
  const images = [...page.images].map(image => image.naturalWidth);
  const durations = [], played = [];
  for (const audio of page.querySelectorAll("audio")) {
    audio.muted = true;
    await audio.play();
    await new Promise(done => audio.addEventListener("timeupdate", () => audio.currentTime > 0 && done()));
    durations.push(audio.duration); played.push(audio.currentTime);
  }
  const root = page.scrollingElement;
  const result = {images, durations, played, overflow: root.scrollWidth - root.clientWidth};
  fetch("/result", {method: "POST", body: JSON.stringify(result)});
};
</script>"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves the page and the probe; takes what the probe found."""

    found: queue.Queue[dict]

    def do_POST(self):
        self.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt install chromium)")
def test_in_a_browser(page, tmp_path):
    shutil.copy(page, tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(PROBE)
    handler = type("Handler", (Server,), {"found": queue.Queue()})
    log = tmp_path / "browser.log"
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path)) as server,
        log.open("w") as errors,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required",
             f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--remote-debugging-port=0",
             f"http://127.0.0.1:{server.server_port}/probe.html"],
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        try:
            found = handler.found.get(timeout=60)
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()
    assert found["images"]
    assert min(found["images"]) > 0
    assert found["durations"] == pytest.approx([1.0, 1.0], abs=0.01)
    assert min(found["played"]) > 0
    assert found["overflow"] <= 0
    assert "CONSOLE" not in log.read_text()
