"""A mode of backpropagation of one's own: truncated, with b in proportion to L.

From the root of the repository:

    export PYTHONPATH=examples/own_mode
    python -m pdunroll prepare experiment=smoke
    python -m pdunroll train -m --config-dir examples/own_mode experiment=smoke backprop=full,proportional
    python -m pdunroll evaluate experiment=smoke
    python -m pdunroll figures experiment=smoke

The mode then has rows in the tables, curves in the figures, and its operators in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import pdunroll
from pdunroll.core.engine import Engine
from pdunroll.errors import require_share


@dataclass(frozen=True, kw_only=True)
class Proportional(pdunroll.Truncated):
    """Truncated backpropagation over b = share * L iterations, where `Truncated` takes the same b for every L.

    Attributes:
        share: b / L, between 0 and 1.
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("backprop.share", self.share)

    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return the gradient after share * L backward iterations, (m, n)."""
        b = max(1, round(self.share * iterations))
        return next(self.gradients(engine, K, kept, [b], grad))
