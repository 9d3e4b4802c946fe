"""The classifiers of a round of active learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Data, Split
from tutelage.data.modality import Vectors
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run, initial_weights

Predictor = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""``(round, indices, labels)`` to the probabilities (N, C) of all training samples, by a classifier trained on samples
with these indices and labels, and their embeddings (N, D) where they are read."""


def trained_students(run: Run, *, features: bool) -> Predictor:
    """A predictor by a new student in each round; with ``features``, also of embeddings."""

    def predict(number: int, indices: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        model, train = run.student(number), run.data.train
        data = replace(run.data, train=replace(train.subset(indices), labels=labels), validation=None)
        run.fit(Learner(model, None, {"ce": CrossEntropy()}), data=data)
        probabilities = run.predict(model, train).softmax(1)
        return probabilities, run.predict(model, train, ("embedding",)) if features else None

    return predict


def linear_classifiers(run: Run, student: Tapped) -> Predictor:
    """A predictor by a linear classifier of the student's embeddings, which are computed once."""
    features = run.predict(student, run.data.train, ("embedding",))

    def predict(number: int, indices: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        train = Split.of(features[indices], labels, Vectors())
        data = Data(f"embeddings of {run.data.name}", run.data.classes, train, train)
        with initial_weights(run.seed, number):
            model = Tapped(nn.Linear(features.shape[1], run.data.num_classes), *data.mean_std)
        run.fit(Learner(model, None, {"ce": CrossEntropy()}), data=data)
        everything = Split.of(features, torch.full((len(features),), UNLABELLED), Vectors())
        return run.predict(model, everything).softmax(1), features

    return predict
