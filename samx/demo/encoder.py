"""The demo model's image encoder: a small convolutional U-Net from pixels to the image embedding."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

PICTURE_POOL = 4  # the frame is averaged 4 x 4 first: a 1024 px frame is seen as a 256 px picture
EMBEDDING_WIDTH = 256
WIDTHS = (16, 32, 64, 96, 128, 128)  # at 1, 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture
HIGH_RES_CHANNELS = (32, 64)  # what SAM 2's decoder expects at 1 and 1/2 of the picture
NORM_GROUPS = 8
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


class ConvNorm(nn.Sequential):
    """Convolve, normalise in groups of channels, rectify."""

    def __init__(self, width_in: int, width_out: int, stride: int = 1, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False),
            nn.GroupNorm(NORM_GROUPS, width_out),
            nn.ReLU(),
        )


class Residual(nn.Module):
    """Add a convolution's result to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = ConvNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class DemoEncoder(nn.Module):
    """Encode a frame into the image embedding and, for SAM 2, the two high-resolution features.

    The frame's side must be a multiple of 128 px; its values are RGB from 0 to 1, padding is 0.
    """

    def __init__(self, high_res: bool = False) -> None:
        super().__init__()
        w = WIDTHS
        self.stem = ConvNorm(3, w[0])
        self.down = nn.ModuleList(ConvNorm(a, b, stride=2) for a, b in pairwise(w))
        self.blocks = nn.ModuleList(
            [nn.Identity(), nn.Identity(), Residual(w[2]), Residual(w[3]), Residual(w[4]), nn.Identity()]
        )
        self.lateral = nn.ModuleList(ConvNorm(b, a, kernel=1) for a, b in pairwise(w[2:]))
        self.fuse = nn.ModuleList([Residual(w[2]), Residual(w[3]), nn.Identity()])
        self.neck = nn.Sequential(nn.Conv2d(w[2], EMBEDDING_WIDTH, 1, bias=False), nn.GroupNorm(1, EMBEDDING_WIDTH))
        self.conv_s0 = nn.Conv2d(w[0], HIGH_RES_CHANNELS[0], 1) if high_res else None
        self.conv_s1 = nn.Conv2d(w[1], HIGH_RES_CHANNELS[1], 1) if high_res else None

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Encode a frame.

        Shapes: (B, 3, 16G, 16G) -> image_embeddings (B, 256, G, G)
            [, high_res_features_0 (B, 32, 4G, 4G), high_res_features_1 (B, 64, 2G, 2G)].
        """
        return self.encode_picture(F.avg_pool2d(frame, PICTURE_POOL))

    def encode_picture(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Encode an already averaged frame. Shapes: (B, 3, 4G, 4G) -> as forward."""
        levels = [self.stem((picture - PIXEL_MEAN) / PIXEL_STD)]
        for down, block in zip(self.down, self.blocks[1:], strict=True):
            levels.append(block(down(levels[-1])))
        x = levels[5]
        for index in (2, 1, 0):
            grown = F.interpolate(self.lateral[index](x), scale_factor=2.0, mode="nearest")
            x = self.fuse[index](levels[index + 2] + grown)
        embedding = self.neck(x)
        if self.conv_s0 is None or self.conv_s1 is None:
            return (embedding,)
        return embedding, self.conv_s0(levels[0]), self.conv_s1(levels[1])
