"""Text classifiers of Hugging Face transformers."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from tutelage.data.modality import Tokens, check_encoding
from tutelage.data.tokenizer import open_tokenizer, tokenizer_identity
from tutelage.errors import TutelageError, TutelageWarning, one_line
from tutelage.models.external.common import BuiltModel, ModelSpec, build_errors, import_extra
from tutelage.models.tokens import text_mask


class TextLogitsOf(nn.Module):
    """A transformers text classifier as a network from token numbers to logits.

    ``network`` is the transformers model, for example for ``save_pretrained``; its keys do not change. Padding is not
    attended to: the attention mask follows from the tokens.
    """

    def __init__(self, network: nn.Module, padding: int) -> None:
        super().__init__()
        self.network = network
        self.padding = padding

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The state of the transformers model, under its own keys."""
        return self.network.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Load the state of the transformers model."""
        return self.network.load_state_dict(*args, **options)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, T) int64 to logits (B, num_classes)."""
        mask = text_mask(tokens, self.padding).to(tokens.dtype)
        logits: Tensor = self.network(input_ids=tokens, attention_mask=mask).logits
        return logits


def text_classifier(spec: str, name: str, requirements: ModelSpec, modality: Tokens) -> BuiltModel:
    """A text classifier of the hub or of a folder, always with its weights.

    Raises:
        TutelageError: transformers is missing, the model cannot be loaded, or it was trained on the numbers of another
            tokenizer than that of the data, or on shorter texts.
    """
    transformers = import_extra(spec, "transformers", extra="hf")
    with build_errors(spec):
        network = transformers.AutoModelForSequenceClassification.from_pretrained(
            name,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,  # never run code that comes with weights
            **({"num_labels": requirements.num_classes} if requirements.num_classes else {}),
        )
    config = network.config
    _check_tokenizer(spec, name, modality)
    _check_vocabulary(spec, config, modality)
    longest, length = getattr(config, "max_position_embeddings", None), requirements.input_shape[0]
    if longest and length > longest:
        raise TutelageError(
            f"{spec!r} takes texts of up to {longest} tokens and the data has {length}; set a truncation in the "
            "tokenizer"
        )
    return BuiltModel(TextLogitsOf(network, modality.padding), classes=_class_names(config))


def _class_names(config: Any) -> tuple[str, ...]:
    """The names of the classes in a configuration; empty for the library's own names, ``LABEL_0`` and so on."""
    names = tuple(str(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items()))
    return () if any(name.startswith("LABEL_") for name in names) else names


def _check_tokenizer(spec: str, name: str, modality: Tokens) -> None:
    """Compare the network's tokenizer with that of the data; warn if one of them is unknown."""
    try:
        identity = tokenizer_identity(open_tokenizer(name))
    except TutelageError as error:
        identity = ""
        reason = f"its tokenizer cannot be opened ({one_line(error)})"
    else:
        reason = "the data does not record its tokenizer"
    if not identity or not modality.encoding:
        warnings.warn(
            f"{spec!r} may read the tokens of these texts as others: {reason}; make sure that both have the same "
            "tokenizer",
            TutelageWarning,
            stacklevel=5,  # where make_model was called
        )
    check_encoding(repr(spec), identity, modality, "the data")


def _check_vocabulary(spec: str, config: Any, modality: Tokens) -> None:
    """Refuse a network whose table of tokens or padding does not fit the data."""
    size, padding = getattr(config, "vocab_size", None), getattr(config, "pad_token_id", None)
    if size is not None and modality.vocabulary > size:
        raise TutelageError(
            f"{spec!r} has {size} tokens and the tokenizer of the data {modality.vocabulary}; use the network's own "
            "tokenizer for the data"
        )
    if padding is not None and padding != modality.padding:
        raise TutelageError(
            f"{spec!r} is padded with token {padding} and the texts of the data with token {modality.padding}; use the "
            "network's own tokenizer for the data"
        )
