"""The first upscaling as one product with an image's factors. See low_rank.py for the letters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from samx.models.fast.attention import Linear
from samx.models.fast.factors import Image
from samx.models.fast.folding import AfterOne
from samx.models.fast.scale_free import EXTRA, centred_outputs, epsilon_bias
from samx.models.fast.upscale import SUBROWS, GrowRows
from samx.models.reference import LayerNorm2d, MaskDecoder


class GrowFactors(nn.Module):
    """Grow an image's factors to pixels; where nothing is added to them before their norm, without the scale."""

    def __init__(self, after: AfterOne, source: MaskDecoder, *, turned: bool) -> None:
        """Take the decoder, and whether to copy the factors to cells outermost before they are multiplied."""
        super().__init__()
        self.turned = turned
        grow = GrowRows(cast(nn.ConvTranspose2d, source.output_upscaling[0]), biased=True)
        self.scaled = source.spec.high_res_features
        self.channels = grow.channels if self.scaled else grow.channels + EXTRA
        weights, bias = [grow.get_buffer(f"weight{dy}").t() for dy in SUBROWS], grow.bias  # (dx * out, C), (dx * out,)
        if not self.scaled:
            weights = [centred_outputs(weight, grow.channels) for weight in weights]
            bias = epsilon_bias(bias, grow.channels, cast(LayerNorm2d, source.output_upscaling[1]).eps)
        self.rows = nn.ModuleList(after.rows(weight, bias) for weight in weights)
        folded = [after.fold(weight) for weight in weights]
        self.table = nn.ModuleList(Linear(weight, weight @ after.zero.offset[0]) for weight in folded)

    def tables(self, cells: Tensor) -> dict[str, Tensor]:
        """Upscale the image's part. Shapes: (1, C, L) -> (1, L, dx * out) x 2."""
        last = cells.transpose(1, 2)
        return {f"image_rows_{dy}": self.table[dy](last) for dy in SUBROWS}

    def forward(self, dy: int, state: Mapping[str, Tensor], spread: tuple[Tensor, Tensor], image: Image) -> Tensor:
        """Give one sub-row. Shapes: spread values of both layers -> (N, 2*L, C/4 [+ 2])."""
        factors, rows = image.factors.transpose(1, 2), self.rows[dy](*spread)
        # Four axes, or else ONNX Runtime takes the transposition into the product, and loses more than it saves.
        of_rows = (factors.unsqueeze(1) @ rows.unsqueeze(1)).squeeze(1) if self.turned else factors @ rows
        grown = of_rows + state[f"image_rows_{dy}"]
        grown = grown * image.scale.transpose(1, 2) if self.scaled else grown
        return grown.reshape(-1, 2 * grown.shape[1], self.channels)
