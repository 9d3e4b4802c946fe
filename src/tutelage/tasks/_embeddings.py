"""What tasks of embeddings have in common."""

from __future__ import annotations

from typing import ClassVar

from tutelage.data.data import Data
from tutelage.errors import TutelageError
from tutelage.evaluation.embeddings import embedder
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks.task import Task, check_single_label


class EmbeddingTask(Task):
    """A task whose networks give a vector (B, D) for each sample, on data with one class a sample."""

    roles: ClassVar[tuple[str, ...]] = ("embedding",)

    def check_data(self, data: Data) -> None:
        """One class a sample."""
        check_single_label(self.name, data)

    def check(self, who: str, outputs: Outputs, data: Data) -> None:
        """A vector for each sample."""
        check_embedding(who, outputs)

    def with_evaluated_roles(self, model: Tapped, data: Data) -> Tapped:
        """See ``embedder``."""
        return embedder(model, data)


def check_embedding(who: str, outputs: Outputs) -> None:
    """Refuse a network that gives logits and no embedding, or an embedding that is no vector.

    Raises:
        TutelageError: with what it gives.
    """
    embedding = outputs.features.get("embedding")
    if embedding is None and not outputs.features:
        raise TutelageError(f'{who} gives no embedding; name the layer that does: roles={{"embedding": "LAYER"}}')
    if embedding is not None and embedding.ndim != 2:
        raise TutelageError(
            f"{who} gives embeddings of shape {tuple(embedding.shape)}; name a layer that gives vectors (B, D)"
        )
