"""A small convolutional network for texts."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.models.family import Family
from tutelage.models.tokens import masked_max, text_mask, zero_padding

KERNEL = 3


class ConvolutionBlock(nn.Module):
    """x + conv(ReLU(norm(x))) over the tokens; padding is 0 before and after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width) and (B, T) to (B, T, width)."""
        inner = zero_padding(F.relu(self.norm(x)), mask)
        return x + zero_padding(self.conv(inner.transpose(1, 2)).transpose(1, 2), mask)


class TextCNN(nn.Module):
    """Token embeddings, residual convolutions of three tokens, and the maximum over the text of each channel.

    The maximum over time is that of Kim (2014); the residual blocks, in place of one layer of several kernel sizes,
    give the network stages that feature methods read. Padding has no influence: the normalisation is that of each
    token, and features of padding are 0 and are not in the maximum. Texts may have any length.

    Args:
        depth: the number of blocks.
        width: the channels of embeddings and blocks.
        num_classes: outputs of the classifier.
        vocabulary: the number of tokens, including padding.
        padding: the token that fills shorter texts.
    """

    def __init__(self, depth: int, width: int, num_classes: int, vocabulary: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.table = nn.Embedding(vocabulary, width, padding_idx=padding)
        self.blocks = nn.ModuleList([ConvolutionBlock(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, T) int64 to logits (B, num_classes)."""
        mask = text_mask(tokens, self.padding)
        x = zero_padding(self.table(tokens), mask)
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.head(masked_max(self.norm(x), mask))
        return logits


FAMILY = Family(
    re.compile(r"textcnn-(?P<depth>[1-9][0-9]*)-(?P<width>[1-9][0-9]*)"),
    TextCNN,
    ("textcnn-2-64", "textcnn-3-128"),
    "convolutions over tokens, for texts: textcnn-<blocks>-<width>",
    "after Kim 2014, arXiv 1408.5882",
)
