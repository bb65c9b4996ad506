"""The embedded demo model: small trained encoders with full-size decoders, and the scenes they were trained on."""

from __future__ import annotations

from pathlib import Path

from samx.errors import UnavailableError, UsageError

FAMILIES = ("sam1", "sam2")


def demo_checkpoint(family: str) -> Path:
    """Return the path of the demo weights of a family, 'sam1' or 'sam2'.

    Raises: UsageError for any other family; UnavailableError where this samx carries no demo weights.
    """
    if family not in FAMILIES:
        raise UsageError("no demo weights for this family", found=family, expected=" or ".join(FAMILIES))
    path = Path(__file__).parent / "weights" / f"{family}.safetensors"
    if not path.is_file():
        fix = "Name a checkpoint, or use an installed samx: samx.pyz leaves the demo weights out."
        raise UnavailableError("the demo weights are not here", found=path, fix=fix)
    return path
