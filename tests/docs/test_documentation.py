"""Every command and every Python block of README.md and docs/ is run, is a stage, or is listed with a reason."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import pdunroll
from conftest import ROOT, SMOKE_RUNS, called, copy_repository, environment, settings_of
from pdunroll.__main__ import COMMANDS
from pdunroll.claims import registry as claims
from pdunroll.commands.restore import parser
from pdunroll.report import registry
from pdunroll.speech import quantizer

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("make", "python", "pytest", "dvc", "pip", "wandb")
# Commands that no test runs and that are no stages, by how they begin, and why.
LISTED = {
    "pip install": "installs; CI does this",
    "wandb": "needs an account",
    "python -m pdunroll dashboard": "needs an account; tests/report/test_dashboard.py has a server on loopback",
    "python -m pdunroll train -m experiment=paper": "takes hours",
    "python -m pdunroll train -m experiment=declip": "takes half an hour",
    "python -m pdunroll train -m experiment=few": "takes minutes, on the corpus",
    "python -m pdunroll train -m experiment=quick sweep=": "takes hours",
    "python -m pdunroll train -m experiment=quick network.step_norm=spectral": "takes half an hour",
    "python -m pdunroll evaluate experiment=paper": "takes hours",
    "python -m pdunroll train experiment=paper": "takes hours",
    "python -m pdunroll train experiment=quick": "takes minutes, on the corpus",
    "python -m pdunroll train experiment=depths": "takes minutes, on the corpus",
    "python -m pdunroll train -m experiment=future sweep=": "takes hours",
    "python -m pdunroll evaluate experiment=future": "needs trainings that take hours",
    "python -m pdunroll figures experiment=future": "needs trainings that take hours",
    "python -m pdunroll prepare data=ieee": "downloads the corpus",
    "python benchmarks/": "measures for minutes to hours",
    "python tests/restore/fuzz_audio.py": "needs atheris",
    "dvc exp run": "the chain, as `dvc repro` runs it",
    "dvc exp show": "shows what `dvc exp run` did",
    "dvc remote add": "the tests of DVC in tests/commands push to a local remote",
    "dvc push": "as above",
    "dvc pull": "as above",
    "dvc status": "shows what has changed",
    "dvc params diff": "shows what has changed",
    "dvc metrics diff": "shows what has changed",
    "dvc plots diff": "shows what has changed",
    "dvc metrics show": "shows what the chain wrote",
    "dvc plots show": "shows what the chain wrote",
}
# Blocks that test_blocks_run runs in a copy of the smoke chain: page, what the block holds, changes that make it small.
TRAIN = " optimization.train_frames=64 optimization.validation_frames=16 tracking=off"
ONE = f" network.iterations=3 backprop=full backprop.primal_mask=active_set{TRAIN}"
BLOCKS = [
    ("extending.md", "backprop=full,proportional", {}),
    ("extending.md", "data=tones", {}),
    ("extending.md", "degradation=worn", {}),
    ("pipeline.md", "data.root=FOLDER", {
        "root=FOLDER": "root=audio data.frame_length=64", "-m data=folder": f"-m data=folder data.frame_length=64{ONE}",
        "evaluate data=folder": "evaluate data=folder evaluation.iterations=30 evaluation.frames=16",
    }),
    ("pipeline.md", "network.iterations=100", {"=100": f"=100 experiment=smoke{TRAIN}"}),
    ("pipeline.md", "'name=rate", {"quick": "smoke", "learning_rate=1e-4,1e-5": f"learning_rate=1e-4,1e-5{ONE}"}),
    ("restore.md", "--reference", {"multirun/mine/RUN": f"multirun/smoke/{SMOKE_RUNS[0]}"}),
]  # fmt: skip


def fenced(page: Path, language: str) -> list[str]:
    """The blocks of code of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def block(page: str, holds: str) -> str:
    """The one block of shell commands of a page that holds a text."""
    (found,) = [text for text in fenced(ROOT / "docs" / page, "sh") if holds in text]
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a shell script, as words, without comments."""
    lines = text.replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@cache
def documented() -> list[tuple[str, list[str]]]:
    """All commands of all pages, in blocks and in lines of text, with their page."""
    found = []
    for page in PAGES:
        spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M))
        inline = [
            " ".join(span.split())
            for span in spans
            if span.split()[0] in PROGRAMS and " " in span and "..." not in span
        ]
        for text in (*fenced(page, "sh"), *inline):
            found += [(page.name, words) for words in commands(text)]
    return found


def is_stage(words: list[str]) -> bool:
    """Whether dvc.yaml runs this command, for one of the presets."""
    presets = {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")}
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    known = [stage["do"]["cmd"].split(" experiment=")[0].split() for stage in stages]
    bare = [word for word in words if word not in {f"experiment={preset}" for preset in presets}]
    return bare in known


def is_listed(words: list[str]) -> bool:
    return any(" ".join(words).startswith(start) for start in LISTED)


def is_run(page: str, words: list[str]) -> bool:
    """Whether it is in a block that test_blocks_run runs, or a run of tests or of a target of the Makefile."""
    if words[0] == "pytest":
        return all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    if words[0] == "make":
        return bool(re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M))
    if words[:2] == ["dvc", "repro"]:
        return True
    return any(words in commands(block(name, holds)) for name, holds, _ in BLOCKS if name == page) or words[:4] == [
        *"python -m pdunroll restore".split()
    ]


def test_every_command_is_run_or_a_stage_or_listed():
    left = [
        (page, " ".join(words))
        for page, words in documented()
        if words[0] != "export" and not (is_stage(words) or is_listed(words) or is_run(page, words))
    ]
    assert left == []


def test_nothing_is_listed_that_is_not_documented():
    for start in LISTED:
        assert any(" ".join(words).startswith(start) for _, words in documented()), start


def test_the_settings_of_every_command_compose():
    """Also those of the commands that take hours."""
    grammar = OverridesParser.create()
    for page, words in documented():
        if words[:3] != ["python", "-m", "pdunroll"]:
            continue
        name, *arguments = words[3:]
        assert name in COMMANDS, (page, words)
        if name == "restore":
            if arguments:
                parser().parse_args(arguments)
            continue
        given = [word for word in arguments if word != "-m"]
        if "--config-dir" in given:  # test_blocks_run composes it
            continue
        parsed = [(text, part) for text, part in zip(given, grammar.parse_overrides(given), strict=True)]
        own = [text for text, part in parsed if not part.is_sweep_override() and not text.startswith("hydra")]
        settings_of(*own)
        for text, part in parsed:
            if part.is_sweep_override():
                for value in part.sweep_string_iterator():
                    settings_of(*own, f"{text.partition('=')[0]}={value}")


@pytest.mark.parametrize(("page", "holds", "changes"), BLOCKS, ids=[holds for _, holds, _ in BLOCKS])
def test_blocks_run(smoke, tmp_path, page, holds, changes):
    folder = tmp_path / "copy"
    shutil.copytree(smoke, folder, symlinks=True)
    write_recordings(folder)
    write_recipe(folder / "mine")
    script = block(page, holds)
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    run_script(script, folder)
    if "proportional" in holds:
        assert "proportional" in (folder / "outputs/smoke/results.txt").read_text()


def run_script(script: str, folder: Path) -> None:
    """Run a script in a shell if it needs one, and otherwise its commands in this process."""
    programs = commands(script)
    if all(words[:3] == ["python", "-m", "pdunroll"] for words in programs):
        for words in programs:
            assert called(*words[3:], cwd=folder) == 0, words
        return
    script = script.replace("PYTHONPATH=", "PYTHONPATH=$PYTHONPATH:")
    done = subprocess.run(
        ["bash", "-ec", script], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def write_recordings(folder: Path) -> None:
    """Write what the commands of the pages read: in.wav, clean.wav and a folder of audio."""
    generator = np.random.default_rng(0)
    clean = np.sin(np.arange(4000) / 9) * np.hanning(4000)
    soundfile.write(folder / "clean.wav", clean, 16000)
    soundfile.write(folder / "in.wav", quantizer.quantize(clean, 4), 16000)
    (folder / "audio").mkdir()
    for number in range(8):
        soundfile.write(folder / f"audio/{number}.wav", 0.5 * generator.uniform(-1, 1, 4000), 16000)


def write_recipe(folder: Path) -> None:
    """Write the corpus and the degradation of docs/extending.md."""
    (folder / "data").mkdir(parents=True)
    (folder / "degradation").mkdir()
    page = ROOT / "docs/extending.md"
    (code,) = [text for text in fenced(page, "python") if "class Tones" in text]
    (settings,) = [text for text in fenced(page, "yaml") if "tones.Tones" in text]
    (folder / "tones.py").write_text(code)
    (folder / "data/tones.yaml").write_text(settings)
    (settings,) = [text for text in fenced(page, "yaml") if "missing: 0.1" in text]
    (folder / "degradation/worn.yaml").write_text(settings)


def test_the_mode_of_the_page_is_that_of_the_example():
    page, example = ROOT / "docs/extending.md", ROOT / "examples/own_mode"
    assert any(text in (example / "proportional.py").read_text() for text in fenced(page, "python"))
    assert (example / "backprop/proportional.yaml").read_text() in fenced(page, "yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, monkeypatch):
    for name in ("FIGURES", "SECTIONS"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    monkeypatch.setattr(claims, "CLAIMS", list(claims.CLAIMS))
    generator = torch.Generator().manual_seed(0)
    given = {
        "__name__": "page", "y": (0.3 * torch.randn(4, 320, generator=generator)).clamp(-1, 1), "registry": registry,
        "section": registry.section, **vars(claims),
    }  # fmt: skip
    for text in fenced(page, "python"):
        exec(text, given)


def test_the_reference_has_the_whole_interface():
    text = (ROOT / "docs/reference.md").read_text()
    assert set(re.findall(r"^::: pdunroll\.(\w+)$", text, re.M)) == set(pdunroll.__all__)


def test_the_site_is_built_strictly(tmp_path):
    for package in ("mkdocs", "mkdocstrings", "jupytext", "nbconvert", "ipykernel"):
        pytest.importorskip(package, reason="pip install -e '.[docs]'")
    copy_repository(tmp_path)
    done = subprocess.run(
        ["make", "--assume-old=.venv/docs-installed", "--assume-old=.venv/installed", "docs"],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    notebook = (tmp_path / "site/notebook/index.html").read_text()
    assert notebook.count("<audio") == 4
    assert notebook.count('src="index_files/') == 3
    assert "Two commands" in (tmp_path / "site/index.html").read_text()
    assert "Truncated" in (tmp_path / "site/reference/index.html").read_text()
