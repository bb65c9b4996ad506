"""The embedded demo model: small trained encoders with full-size decoders, and the scenes they were trained on."""

from __future__ import annotations

from pathlib import Path

from samx.errors import UsageError

FAMILIES = ("sam1", "sam2")


def demo_checkpoint(family: str) -> Path:
    """Return the path of the demo weights of a family, 'sam1' or 'sam2'.

    Raises: UsageError for any other family.
    """
    if family not in FAMILIES:
        raise UsageError("no demo weights for this family", found=family, expected=" or ".join(FAMILIES))
    return Path(__file__).parent / "weights" / f"{family}.safetensors"
