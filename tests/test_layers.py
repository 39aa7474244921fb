"""Lower layers never import upper ones, and figures and verdicts are made from tables alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pdunroll

LAYERS = (
    {"errors"},
    {"folders", "processes"},
    # mathematics
    {
        "quantizer",
        "problem",
        "chambolle_pock",
        "engine",
        "loops",
        "backprop",
        "optimum",
        "implicit",
        "settled",
        "limits",
        "inference",
        "statistics",
        "levels",
    },
    {"runs", "schema", "espeak", "speech", "frames", "recordings"},  # speech and artefacts
    {"config"},
    {"network", "training", "tracking", "cell", "operators", "sweep"},  # learning
    # from tables alone
    {
        "plotting",
        "theory_figures",
        "claims",
        "regime_claims",
        "interpretability_claims",
        "cost_claims",
        "theory_claims",
    },
    {
        "settings",
        "prepare",
        "train",
        "evaluate",
        "theory",
        "benchmark",
        "figures",
        "verdicts",
        "quality",
        "report",
        "dashboard",
        "dequantize",
    },  # entry points
)
MATHEMATICS, SPEECH, FROM_TABLES, ENTRY_POINTS = LAYERS[2], LAYERS[3], LAYERS[-2], LAYERS[-1]


def imports() -> dict[str, set[str]]:
    """Module -> what it imports anywhere, as top-level names, or names within the package as "pdunroll.NAME"."""
    found = {}
    for path in Path(pdunroll.__file__).parent.glob("*.py"):
        if path.stem == "__init__":
            continue
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "pdunroll":
                names |= {f"pdunroll.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module if node.module.startswith("pdunroll.") else node.module.split(".")[0])
        found[path.stem] = names
    return found


def test_every_module_has_its_layer():
    assert set(imports()) == set.union(*LAYERS)


def test_imports_go_downwards():
    height = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    for module, names in imports().items():
        for name in names:
            if name.startswith("pdunroll."):
                assert height[name.removeprefix("pdunroll.")] <= height[module], f"{module} imports {name}"


def test_entry_points_do_not_import_each_other():
    for module in ENTRY_POINTS:
        assert not {f"pdunroll.{other}" for other in ENTRY_POINTS} & imports()[module]


def test_each_layer_keeps_to_its_libraries():
    found = imports()
    found["engine"].remove("pathlib")  # it looks for the library of its products beside torch
    for module in MATHEMATICS:
        assert not {"hydra", "omegaconf", "pytorch_lightning", "wandb", "librosa", "pathlib"} & found[module], module
    for module in SPEECH:
        assert not {"torch", "hydra", "omegaconf", "pytorch_lightning", "wandb"} & found[module], module
    for module in ("figures", "verdicts", "report", *FROM_TABLES):
        assert not {"torch", "pytorch_lightning"} & found[module]
