"""What the fast form computes with, made of a checkpoint's weights in a way that can be traced.

The fast form makes its constants as it is built: positions are projected, norms and projections folded into each other.
Together they are larger than the weights, and many of them are made of the same one.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from samx.models.checkpoint import LoadedDecoder, build_reference
from samx.models.fast.decoder import FastDecoder

LEAST_BYTES = 64 * 1024  # of a constant that is worth it


class TransformerConstants(nn.Module):
    """Return the large constants of a decoder's transformer, in the order of `names`, made of the weights it holds."""

    def __init__(self, decoder: FastDecoder, loaded: LoadedDecoder) -> None:
        super().__init__()
        self.reference = build_reference(replace(loaded, spec=decoder.spec)).requires_grad_(False)
        self.build = decoder.transformer_of
        self.names = [name for name, value in decoder.transformer.named_buffers() if value.nbytes >= LEAST_BYTES]

    def forward(self) -> tuple[Tensor, ...]:
        """Build the transformer again."""
        made = self.build(self.reference)
        return tuple(made.get_buffer(name) for name in self.names)
