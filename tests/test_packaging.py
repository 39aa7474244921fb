"""What is installed: the Python interface needs no package of the pipeline; wheel and sdist work outside of a clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, copy_repository

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIPELINE = [
    "hydra", "omegaconf", "pytorch_lightning", "torchmetrics", "joblib", "wandb", "librosa", "pooch", "requests",
    "espeakng_loader", "matplotlib", "psutil", "dvc",
]  # fmt: skip
USE = """
import numpy as np, soundfile, torch, pdunroll
assert all(callable(getattr(pdunroll, name)) for name in pdunroll.__all__ if not name.startswith("__"))
generator = torch.Generator().manual_seed(0)
x = pdunroll.quantize(0.5 * torch.randn(4, 16, generator=generator).clamp(-1, 1), bits=4)
operator = pdunroll.dct_operator(16, 16).requires_grad_()
pdunroll.unroll(operator, x, radius=1 / 16, iterations=10, backprop=pdunroll.Truncated(iterations=5)).sum().backward()
assert operator.grad.isfinite().all()
assert pdunroll.solve(operator.detach(), x, radius=1 / 16).gap.max() <= 1e-6
noise = np.random.default_rng(0).uniform(-0.5, 0.5, 1600)
soundfile.write("in.wav", pdunroll.quantize(noise, 4), 16000)
"""


def blocked(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `pdunroll ARGUMENTS`, or a program after -c, where the packages of the pipeline cannot be imported."""
    program = arguments[1] if arguments[0] == "-c" else "import runpy; runpy.run_module('pdunroll', None, '__main__')"
    start = f"import sys; sys.modules.update(dict.fromkeys({PIPELINE}))\n"
    shown = [] if arguments[0] == "-c" else arguments
    return subprocess.run(
        [sys.executable, "-c", start + program, *shown], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_interface_and_restore_need_no_package_of_the_pipeline(tmp_path):
    done = blocked("-c", USE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = blocked("restore", "in.wav", "out.wav", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.wav").is_file()


def test_the_pipeline_is_named_where_it_is_missing(tmp_path):
    done = blocked("train", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "pdunroll: this command is part of the pipeline; install it from a clone: pip install -e '.[pipeline]'\n"
    )


@pytest.mark.slow
def test_wheel_and_sdist_work_outside_of_a_clone(tmp_path):
    copy_repository(tmp_path / "copy")
    dist, away = tmp_path / "dist", tmp_path / "away"
    away.mkdir()
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, tmp_path / "copy"]
    subprocess.run(build, check=True, capture_output=True)  # the sdist, and of it the wheel
    (wheel,) = dist.glob("*.whl")
    assert len(list(dist.glob("*.tar.gz"))) == 1
    names = set(zipfile.ZipFile(wheel).namelist())
    operators = ("restore/operator.npz", "restore/operator7.npz", "restore/listening.npz", "restore/declip.npz")
    for name in ("py.typed", "speech/ieee.sha256", *operators, "report/templates/page.html"):
        assert f"pdunroll/{name}" in names
    venv.create(away / "venv", with_pip=True)
    python = away / "venv/bin/python"
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # where pip would find pdunroll
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True, cwd=away, env=own)
    environment = {"PATH": f"{away}/venv/bin:/usr/bin:/bin"}
    for command, status in (
        (["python", "-c", USE], 0),
        (["pdunroll", "restore", "in.wav", "out.wav"], 0),
        (["pdunroll", "train"], 2),
    ):
        done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, (command, done.stderr)
    assert "part of the pipeline" in done.stderr


def test_each_package_of_the_lock_has_its_hashes_and_none_is_of_cuda():
    text = (ROOT / "requirements.lock").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==(\S+).*\\\n +--hash=sha256:", text, re.MULTILINE))
    assert len(pins) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) > 100
    assert not [name for name in pins if name.startswith(("nvidia", "cuda"))]
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["pipeline"], *extras["dev"][1:]]
    names = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in wanted}
    assert names <= set(pins)


def test_hooks_and_continuous_integration_check_with_the_same_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (repository,) = (entry for entry in hooks if "ruff" in entry["repo"])
    assert f"ruff=={repository['rev'].removeprefix('v')}" in PROJECT["optional-dependencies"]["dev"]
