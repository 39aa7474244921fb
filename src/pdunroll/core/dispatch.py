"""The fastest engine for an operator's dtype and device."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock
from pdunroll.core.compiled import CompiledEngine, product_name
from pdunroll.core.engine import Engine
from pdunroll.core.graphed import GraphedEngine
from pdunroll.errors import InputError


def engine_for(algorithm: ChambollePock, K: Tensor) -> Engine:
    """Return the fastest engine for this operator's dtype and device."""
    if K.device.type == "cuda":
        wanted = os.environ.get("PDUNROLL_GRAPHS", "on")
        if wanted not in ("on", "off"):
            raise InputError(f"the environment variable PDUNROLL_GRAPHS must be on or off, got {wanted!r}")
        return GraphedEngine(algorithm) if wanted == "on" else Engine(algorithm)
    if K.device.type == "cpu" and K.dtype == torch.float32 and (product := product_name()) != "torch":
        return CompiledEngine(algorithm, product)
    return Engine(algorithm)
