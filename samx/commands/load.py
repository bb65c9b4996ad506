"""samx.load(): models.load.load(), with the demo model where no checkpoint is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.demo import demo_checkpoint
from samx.models.load import load as load_decoder

if TYPE_CHECKING:
    from samx.models.fast.decoder import FastDecoder


def load(checkpoint: str | Path | None = None, family: str = "sam1", **options: Any) -> FastDecoder:
    """Return a checkpoint's decoder (None: the demo model of `family`) as a PyTorch module in its fast form.

    options: those of samx.models.load.load().
    Raises: as there; UsageError for a family without a demo model.
    """
    return load_decoder(demo_checkpoint(family) if checkpoint is None else checkpoint, **options)
