"""The MIL operations that the evaluator computes, by their names in MIL: those that exports have, and no others.

Source of every operation's meaning: the definitions in coremltools (mil/ops/defs).
"""

from __future__ import annotations

from collections.abc import Mapping

from samx.runtimes.mil.operations import arrange, elementwise, sums, weights
from samx.runtimes.mil.operations.base import Operation

OPERATIONS: Mapping[str, Operation] = {
    **elementwise.OPERATIONS,
    **arrange.OPERATIONS,
    **sums.OPERATIONS,
    **weights.OPERATIONS,
}
