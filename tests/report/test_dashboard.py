"""Dashboards: what the panels ask for is what the runs log, offline and against a small server on loopback."""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("wandb_workspaces")

from conftest import called, command, copy_results

CLAIM = {
    "claim": "c", "primal_mask": "active_set", "step_norm": "frobenius", "verdict": "holds", "estimate": 1.5,
    "low": 1.0, "high": 2.0, "unit": "%", "statement": "Something is so", "evidence": "seen",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(smoke, tmp_path_factory) -> Path:
    """The smoke chain with a verdict and one sentence, and its dashboard made offline."""
    folder = tmp_path_factory.mktemp("dashboard")
    copy_results(smoke, folder)
    outputs = folder / "outputs/smoke"
    with (outputs / "verdicts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(CLAIM))
        writer.writeheader()
        writer.writerows([CLAIM, {**CLAIM, "verdict": "undecided", "estimate": None, "low": None, "high": None}])
    assert called("quality", "experiment=smoke", "quality.listen=1", cwd=folder) == 0
    done = command("dashboard", "experiment=smoke", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "dashboard.out").write_text(done.stdout + done.stderr)
    return folder


def specification(folder: Path) -> dict:
    return json.loads((folder / "outputs/smoke/dashboard.json").read_text())


def panels(node: object) -> list[dict]:
    """All panels anywhere below `node`."""
    if isinstance(node, list):
        return [panel for part in node for panel in panels(part)]
    if not isinstance(node, dict):
        return []
    own = [node] if "viewType" in node else []
    return own + [panel for part in node.values() for panel in panels(part)]


def records(path: Path) -> Iterator[bytes]:
    """The records of a run that was kept offline: LevelDB's log format after 7 bytes, without its checksums' check."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        size, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def logged(run: Path) -> tuple[set[str], set[str], dict]:
    """Keys of the history, keys of history and summary, and the configuration in a run that was kept offline."""
    from wandb.proto import wandb_internal_pb2

    def name(item) -> str:
        return item.key or item.nested_key[0]

    history, summary, config = set(), set(), {}
    for data in records(next(run.glob("*.wandb"))):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        history |= {name(item) for item in record.history.item}
        summary |= {name(item) for item in record.summary.update}
        if record.HasField("run"):
            config = {
                "job_type": record.run.job_type, "group": record.run.run_group, "tags": list(record.run.tags),
                **{item.key: json.loads(item.value_json) for item in record.run.config.update},
            }  # fmt: skip
    return history, summary | history, config


def the_run(parent: Path) -> Path:
    (run,) = (parent / "wandb").glob("offline-run-*")
    return run


def test_it_says_how_to_publish(finished):
    said = (finished / "dashboard.out").read_text()
    for part in ("wandb login", "wandb sync multirun/smoke/*/wandb/offline-run-*", "tracking=online"):
        assert part in said


def test_panels_ask_for_what_is_logged(finished):
    cell = next(finished.glob("multirun/smoke/*/operator.npy")).parent
    history, summary, config = logged(the_run(cell))
    of_evaluation, _, _ = logged(the_run(finished / "outputs/smoke"))
    with (finished / "outputs/smoke/evaluation.csv").open() as file:
        columns = {"model", "log10_l_inference", *next(csv.reader(file))}
    found = panels(specification(finished)["workspace"])
    kinds = {panel["viewType"] for panel in found}
    assert kinds == {
        "Run History Line Plot", "Scatter Plot", "Bar Chart", "Media Browser", "Weave", "Vega2",
    }  # fmt: skip
    for panel in found:
        settings = panel["config"]
        match panel["viewType"]:
            case "Run History Line Plot":
                assert {settings["xAxis"], *settings["metrics"]} <= history
            case "Scatter Plot":
                assert settings["xAxis"] == "config:network.value.iterations"
                assert "iterations" in config["network"]
                assert settings["yAxis"].removeprefix("summary:") in summary
            case "Bar Chart":
                assert {name.removeprefix("summary_metrics.") for name in settings["metrics"]} <= summary
            case "Media Browser":
                assert set(settings["mediaKeys"]) <= history | of_evaluation
            case "Vega2":
                assert set(settings["fieldSettings"].values()) <= columns
                assert '"evaluation"' in json.dumps(settings["userQuery"])
            case "Weave":
                names = {name for name in of_evaluation if f'"{name}"' in json.dumps(settings)}
                assert names & {"verdicts", "quality_summary"}


def test_runs_say_what_they_are(finished):
    cell = finished / "multirun/smoke/truncated30-active_set-frobenius-L10-seed0"
    _, summary, config = logged(the_run(cell))
    assert (config["job_type"], config["group"]) == ("train", "smoke")
    assert config["tags"] == ["smoke", "truncated", "active_set", "frobenius", "L=10"]
    assert (config["backprop"]["name"], config["network"]["iterations"], config["seed"]) == ("truncated", 10, 0)
    assert config["environment"]["commit"]
    assert {"best_validation_mse", "seconds", "best_step", "operator", "operator_change"} <= summary
    history, summary, config = logged(the_run(finished / "outputs/smoke"))
    assert (config["job_type"], config["group"]) == ("evaluation", "smoke")
    assert {"evaluation", "training", "verdicts", "quality_summary", "sentences", "figures/regimes"} <= history
    assert {"verdicts holds", "verdicts undecided"} <= summary


def test_the_workspace_groups_the_runs_of_the_experiment(finished):
    (runset,) = specification(finished)["workspace"]["spec"]["section"]["runSets"]
    assert [entry["name"] for entry in runset["grouping"]] == [
        "backprop.value.name", "backprop.value.primal_mask", "network.value.step_norm", "network.value.iterations",
    ]  # fmt: skip
    (condition,) = runset["filters"]["filters"]
    assert (condition["key"]["name"], condition["value"]) == ("group", "smoke")


def test_made_again_it_takes_the_place_of_the_old_one(finished):
    assert command("dashboard", "experiment=smoke", cwd=finished).returncode == 0
    the_run(finished / "outputs/smoke")


def test_without_evaluation_or_package_one_line_says_so(call, monkeypatch):
    done = call("dashboard", "experiment=smoke")
    assert (done.status, "python -m pdunroll evaluate experiment=smoke" in done.err) == (2, True)
    monkeypatch.setattr("pdunroll.report.dashboard.find_spec", lambda name: None)
    done = call("dashboard", "experiment=smoke")
    assert (done.status, "pip install -e '.[dashboard]'" in done.err) == (2, True)


def test_online_without_a_login_writes_the_specification_all_the_same(finished, call, tmp_path, monkeypatch):
    shutil.copytree(finished / "outputs", tmp_path / "outputs")
    (tmp_path / "outputs/smoke/dashboard.json").unlink()
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    done = call("dashboard", "experiment=smoke", "tracking=online")
    assert done.status == 2
    assert "wandb login" in done.err
    assert panels(specification(tmp_path)["workspace"])


class FakeServer(BaseHTTPRequestHandler):
    """Answers as Weights & Biases would, to the calls that save a workspace; keeps what was saved."""

    protocol_version = "HTTP/1.1"
    saved: list[dict]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        query = json.loads(body) if self.path == "/graphql" else {"query": ""}
        text, variables = query["query"], query.get("variables") or {}
        answer: dict = {}
        if "upsertView" in text:
            self.saved.append(variables)
            view = {
                "id": variables.get("id") or f"id{len(self.saved)}", "name": variables["name"] or "name",
                "displayName": variables["displayName"], "description": "", "spec": variables["spec"],
                "project": {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]},
                "updatedAt": "2026-01-01T00:00:00",
            }  # fmt: skip
            answer = {"upsertView": {"view": view, "inserted": True}}
        elif "internalId" in text:
            answer = {"project": {"id": "p", "internalId": "p"}}
        elif "GetProjects" in text:
            answer = {"models": {"pageInfo": {"hasNextPage": False, "endCursor": None}, "edges": []}}
        elif "upsertModel" in text:
            answer = {"upsertModel": {"model": {"id": "p", "name": "pdunroll", "entityName": "team"}, "inserted": True}}
        elif "viewer" in text:
            answer = {"viewer": {"id": "u", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        content = json.dumps({"data": answer}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def test_saving_and_saving_again(finished, tmp_path):
    shutil.copytree(finished / "outputs", tmp_path / "outputs")
    FakeServer.saved = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # uploading runs is wandb's own part: left out here
    program = (
        "from pdunroll.__main__ import main; from pdunroll.report import dashboard\n"
        "dashboard.record = lambda *_: None; main()"
    )
    environment = {
        **os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": 40 * "a",
        "HOME": str(tmp_path),
    }  # fmt: skip
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program, "dashboard", "experiment=smoke", "tracking=online"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "/team/pdunroll" in done.stdout + done.stderr
    server.shutdown()
    server.server_close()
    kinds = [(view["type"], view["displayName"], view["entityName"]) for view in FakeServer.saved]
    assert kinds == 2 * [("project-view", "pdunroll smoke", "team")]
    assert [view.get("id") for view in FakeServer.saved] == [None, "id1"]
    assert all(panels(json.loads(view["spec"])) for view in FakeServer.saved)
    assert specification(tmp_path)["saved"]["workspace"]["id"] == "id1"
