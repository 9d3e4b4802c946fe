"""A small Transformer encoder for texts."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import TutelageError
from tutelage.models.family import Family
from tutelage.models.tokens import masked_mean, text_mask, zero_padding

HEAD_WIDTH = 32
LONGEST_WAVE = 10_000.0


class EncoderBlock(nn.Module):
    """Self-attention and two dense layers, each after a normalisation and beside a shortcut; padding stays 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor, attended: Tensor) -> Tensor:
        """(B, T, width), (B, T) and (B, 1, 1, T) to (B, T, width)."""
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attended)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return zero_padding(x + self.mlp(self.norm2(x)), mask)


class TextTransformer(nn.Module):
    """Token embeddings with sinusoidal positions, pre-norm encoder blocks, and the mean over the text.

    Padding has no influence: no token attends to it, its features are 0 and are not in the mean. Texts may have any
    length. Blocks have heads of 32 channels, or one head if the width is not a multiple of 32, and no dropout.

    Args:
        depth: the number of blocks.
        width: the channels of embeddings and blocks, an even number.
        num_classes: outputs of the classifier.
        vocabulary: the number of tokens, including padding.
        padding: the token that fills shorter texts.

    Raises:
        TutelageError: the width is odd.
    """

    def __init__(self, depth: int, width: int, num_classes: int, vocabulary: int, padding: int) -> None:
        super().__init__()
        if width % 2:
            raise TutelageError(f"texttransformer needs an even width for its positions, got {width}; take {width + 1}")
        self.padding, self.width = padding, width
        self.table = nn.Embedding(vocabulary, width, padding_idx=padding)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.blocks = nn.ModuleList([EncoderBlock(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, T) int64 to logits (B, num_classes)."""
        mask = text_mask(tokens, self.padding)
        # A text without any token attends to everything: the softmax over nothing would be NaN.
        attended = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        embedded = self.table(tokens) * self.width**0.5
        x = zero_padding(embedded + positions(tokens.shape[1], self.width, embedded), mask)
        for block in self.blocks:
            x = block(x, mask, attended)
        logits: Tensor = self.head(masked_mean(self.norm(x), mask))
        return logits


def positions(length: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal positions (Vaswani et al. 2017), (length, width), on the device and of the dtype of ``like``.

    The first half of the channels are sines, the second cosines; their wavelengths rise from 2 pi to 10,000 times that.
    """
    steps = torch.arange(width // 2, device=like.device, dtype=torch.float32) / (width // 2)
    rates = torch.exp(steps * -math.log(LONGEST_WAVE))
    angles = torch.arange(length, device=like.device, dtype=torch.float32)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)


FAMILY = Family(
    re.compile(r"texttransformer-(?P<depth>[1-9][0-9]*)-(?P<width>[1-9][0-9]*)"),
    TextTransformer,
    ("texttransformer-2-64", "texttransformer-4-128"),
    "Transformer encoder, for texts: texttransformer-<blocks>-<width>",
    "Vaswani et al. 2017, arXiv 1706.03762",
)
