"""pdunroll: the unrolled primal-dual (Chambolle-Pock) network with a backward pass that can be switched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pdunroll.core.algorithms import Algorithm as Algorithm
    from pdunroll.core.algorithms import PlainChambollePock as PlainChambollePock
    from pdunroll.core.gradients import Backprop as Backprop
    from pdunroll.core.gradients import Full as Full
    from pdunroll.core.halpern import RestartedHalpern as RestartedHalpern
    from pdunroll.core.implicit import Implicit as Implicit
    from pdunroll.core.last_iterations import LastIterations as LastIterations
    from pdunroll.core.last_iterations import OneStep as OneStep
    from pdunroll.core.piggyback import Piggyback as Piggyback
    from pdunroll.core.problem import Box as Box
    from pdunroll.core.problem import dct_operator as dct_operator
    from pdunroll.core.solve import solve as solve
    from pdunroll.core.truncated import Truncated as Truncated
    from pdunroll.core.unroll import unroll as unroll
    from pdunroll.errors import InputError as InputError
    from pdunroll.evaluation.comparison import compare as compare
    from pdunroll.speech.quantizer import quantize as quantize

# Loaded at first use, so that `import pdunroll` and --help do not spend seconds on importing torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "core.algorithms": ["Algorithm", "PlainChambollePock"],
        "core.gradients": ["Backprop", "Full"],
        "core.unroll": ["unroll"],
        "core.halpern": ["RestartedHalpern"],
        "core.implicit": ["Implicit"],
        "core.last_iterations": ["LastIterations", "OneStep"],
        "core.piggyback": ["Piggyback"],
        "core.problem": ["Box", "dct_operator"],
        "core.solve": ["solve"],
        "core.truncated": ["Truncated"],
        "errors": ["InputError"],
        "evaluation.comparison": ["compare"],
        "speech.quantizer": ["quantize"],
    },
)
