"""The MIL operations that the evaluator computes, by their names in MIL."""

from __future__ import annotations

from collections.abc import Mapping

from samx.runtimes.mil.operations import arrange, elementwise, products, reduce, weights
from samx.runtimes.mil.operations.kinds import Operation

OPERATIONS: Mapping[str, Operation] = {
    **elementwise.OPERATIONS,
    **arrange.OPERATIONS,
    **products.OPERATIONS,
    **reduce.OPERATIONS,
    **weights.OPERATIONS,
}
