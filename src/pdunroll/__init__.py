"""pdunroll: the unrolled primal-dual (Chambolle-Pock) network with a backward pass that can be switched."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pdunroll.backprop import Backprop, Full, Truncated, unroll
    from pdunroll.errors import InputError
    from pdunroll.implicit import Implicit
    from pdunroll.optimum import PlainChambollePock, RestartedHalpern, solve
    from pdunroll.problem import dct_operator
    from pdunroll.quantizer import quantize

# Loaded at first use, so that `import pdunroll` and every --help stay free of the seconds that torch takes.
_HOME = {
    "Backprop": "backprop",
    "Full": "backprop",
    "Implicit": "implicit",
    "InputError": "errors",
    "PlainChambollePock": "optimum",
    "RestartedHalpern": "optimum",
    "Truncated": "backprop",
    "dct_operator": "problem",
    "quantize": "quantizer",
    "solve": "optimum",
    "unroll": "backprop",
}
__all__ = [
    "Backprop",
    "Full",
    "Implicit",
    "InputError",
    "PlainChambollePock",
    "RestartedHalpern",
    "Truncated",
    "dct_operator",
    "quantize",
    "solve",
    "unroll",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
