"""The toy family's reference: SAM's, under a name of its own."""

from __future__ import annotations

from samx.models.reference import ReferenceDecoder


class ToyDecoder(ReferenceDecoder):
    """Compute what SAM's reference computes."""
