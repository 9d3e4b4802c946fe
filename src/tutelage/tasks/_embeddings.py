"""The base class of tasks that evaluate embeddings."""

from __future__ import annotations

from typing import ClassVar

from tutelage.data.data import Data
from tutelage.errors import TutelageError
from tutelage.evaluation.embeddings import embedder
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks.task import Task, check_single_label


class EmbeddingTask(Task):
    """A task that evaluates embeddings (B, D), on data with one class per sample."""

    roles: ClassVar[tuple[str, ...]] = ("embedding",)

    def check_data(self, data: Data) -> None:
        """Requires one class per sample."""
        check_single_label(self.name, data)

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Requires a vector for each sample."""
        check_embedding(name, outputs)

    def with_evaluated_roles(self, model: Tapped, data: Data) -> Tapped:
        """See ``embedder``."""
        return embedder(model, data)


def check_embedding(name: str, outputs: Outputs) -> None:
    """Refuse a network that returns logits only, or embeddings that are not vectors.

    Raises:
        TutelageError: with the shape of its embeddings.
    """
    embedding = outputs.features.get("embedding")
    if embedding is None and not outputs.features:
        raise TutelageError(
            f'{name} returns no embedding; name the layer that computes it: roles={{"embedding": "LAYER"}}'
        )
    if embedding is not None and embedding.ndim != 2:
        raise TutelageError(
            f"{name} returns embeddings of shape {tuple(embedding.shape)}; name a layer that returns vectors (B, D)"
        )
