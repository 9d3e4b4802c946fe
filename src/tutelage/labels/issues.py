"""The labels of a data set that look wrong, and the files in which they are listed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tutelage.data import Data
from tutelage.data.batch import UNLABELLED
from tutelage.data.split import rejoined
from tutelage.methods.clean_labels import Repair, doubted_labels
from tutelage.methods.clean_labels.noise import calibrated, true_class_posterior
from tutelage.studies.statistics import Interval, mean_interval

EVIDENCE = ("posterior", "out_of_sample", "differences", "agreement")
DRPL = "drpl"
"""Further evidence, if it orders the labels."""

TRAINED_ON: Mapping[Repair, str] = MappingProxyType(
    {
        "soften": "softened labels",
        "remove": "doubted labels removed",
        "replace": "doubted labels replaced",
    }
)
"""What the network after the repair is trained on, in words."""


def matrix_interval(matrix: Tensor, by_fold: Tensor) -> Tensor:
    """The ends of the interval of each entry of a noise matrix, (2, C, C) float64.

    Args:
        matrix: (C, C), estimated from all samples.
        by_fold: (folds, C, C), estimated from each fold.
    """
    halves = [(interval.high - interval.low) / 2 for interval in map(mean_interval, by_fold.flatten(1).T.tolist())]
    half = torch.tensor(halves, dtype=torch.float64).view_as(matrix)
    return torch.stack([matrix - half, matrix + half]).clamp(0, 1)


@dataclass(frozen=True)
class LabelIssues:
    """The labels of a data set, and what speaks against them.

    Attributes:
        data: the data set. Its training split has the samples that were examined, also those that were drawn for
            testing.
        wrong: (N,) float64, the probability that each training label is wrong; NaN for a sample without a label.
        suggested: (N,) int64, the most probable class other than the label; -1 for a sample without a label.
        support: by kind of evidence (N,) in [0, 1], how much it supports the label; NaN where there is none.
        noise_rate: the estimated share of wrong labels: the mean over the folds, whose networks differ, and its 95 %
            interval.
        noise_matrix: (C, C) float64, the estimated probability of each label (column) by true class (row).
        matrix_interval: (2, C, C) float64, the ends of the 95 % interval of each entry: the entry -+ the half width of
            the interval of the mean over folds, within [0, 1].
        plain_accuracy, cleaned_accuracy: test accuracy of the networks trained on the labels as they are and on the
            repaired ones, by the labels of the test split as they are; ``None`` if there is none.
        repair: how the labels of the second network were repaired, see ``clean_labels``.
    """

    data: Data
    wrong: Tensor
    suggested: Tensor
    support: Mapping[str, Tensor]
    noise_rate: Interval
    noise_matrix: Tensor
    matrix_interval: Tensor
    plain_accuracy: float | None
    cleaned_accuracy: float | None
    repair: Repair

    @classmethod
    def of(
        cls,
        data: Data,
        samples: Mapping[str, Tensor],
        notes: Mapping[str, Any],
        accuracies: tuple[float | None, float | None],
        repair: Repair,
    ) -> LabelIssues:
        """From the results of a run of ``clean_labels``, and the test accuracies of both networks."""
        wrong, fold = samples["wrong"].double(), samples["fold"]
        matrix = torch.tensor(notes["noise_matrix"], dtype=torch.float64)
        by_fold = [float(wrong[fold == number].mean()) for number in sorted({*fold.tolist()} - {UNLABELLED})]
        return cls(
            data,
            wrong,
            samples["suggested"],
            {name: samples[name] for name in (*EVIDENCE, DRPL) if name in samples},
            mean_interval(by_fold),
            matrix,
            matrix_interval(matrix, torch.tensor(notes["fold_matrices"], dtype=torch.float64)),
            *accuracies,
            repair,
        )

    def with_test(self, probabilities: Tensor) -> LabelIssues:
        """The issues with those of the test split, which has the same noise, at the end.

        A label is judged by ``true_class_posterior`` under the noise matrix.

        Args:
            probabilities: (M, C), of the test samples by a network that was trained without them.
        """
        test = self.data.test
        labels, own = test.labels, test.labels[:, None]
        posterior = true_class_posterior(calibrated(probabilities, labels), self.noise_matrix, labels)
        evidence = {
            "posterior": posterior.gather(1, own).squeeze(1).float(),
            "out_of_sample": probabilities.gather(1, own).squeeze(1),
        }
        missing = torch.full((len(test),), torch.nan)
        return replace(
            self,
            data=replace(self.data, train=rejoined(self.data.train, test)),
            wrong=torch.cat([self.wrong, 1 - posterior.gather(1, own).squeeze(1)]),
            suggested=torch.cat([self.suggested, posterior.scatter(1, own, -1.0).argmax(1)]),
            support={name: torch.cat([values, evidence.get(name, missing)]) for name, values in self.support.items()},
        )

    def of_samples(self, data: Data) -> LabelIssues:
        """The same issues, found on the features of these samples."""
        train = data.train if len(self.wrong) == len(data.train) else rejoined(data.train, data.test)
        return replace(self, data=replace(data, train=train))

    @property
    def labels(self) -> Tensor:
        """(N,) int64, the given labels."""
        return self.data.train.labels

    @property
    def doubted(self) -> Tensor:
        """(N,) bool, the labels that are more probably wrong than right."""
        labelled = self.labels != UNLABELLED
        doubted = torch.zeros(len(labelled), dtype=torch.bool)
        doubted[labelled] = doubted_labels(self.wrong[labelled], self.labels[labelled])
        return doubted

    @property
    def ranking(self) -> Tensor:
        """(M,) int64, the rows of the labelled samples, the most doubtful label first."""
        rows = (self.labels != UNLABELLED).nonzero()[:, 0]
        support = torch.stack([*self.support.values()]).double().nanmean(0)
        rows = rows[support[rows].argsort(stable=True)]  # among equal probabilities
        return rows[self.wrong[rows].argsort(descending=True, stable=True)]

    def cleaned_labels(self) -> Tensor:
        """(N,) int64, the labels with the doubted ones repaired: -1 if they are removed, otherwise the suggested class.

        Softened labels have no class number; their doubted ones are given as the suggested class too.
        """
        replacement = torch.full_like(self.labels, UNLABELLED) if self.repair == "remove" else self.suggested
        return self.labels.where(~self.doubted, replacement)

    def file_of(self, row: int) -> str:
        """The name of a sample's file; empty for data that is not made of files."""
        index = int(self.data.train.index[row])
        return self.data.files[index] if index < len(self.data.files) else ""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each labelled sample, the most doubtful label first.

        Yields:
            ``sample`` (its index), ``file``, ``label``, ``suggested``, ``wrong`` (probability), ``doubted``, the
            kinds of evidence (``None`` where there is none), and ``strongest``, the evidence that ranks the label
            lowest.
        """
        classes, doubted = self.data.classes, self.doubted
        ranks = torch.stack([values.argsort(stable=True).argsort() for values in self.support.values()])
        strongest, kinds = ranks.argmin(0), tuple(self.support)
        for row in self.ranking.tolist():
            yield {
                "sample": int(self.data.train.index[row]),
                "file": self.file_of(row),
                "label": classes[int(self.labels[row])],
                "suggested": classes[int(self.suggested[row])],
                "wrong": round(float(self.wrong[row]), 4),
                "doubted": bool(doubted[row]),
                **{name: _rounded(float(values[row])) for name, values in self.support.items()},
                "strongest": kinds[int(strongest[row])],
            }

    def summary(self) -> dict[str, Any]:
        """The estimated noise and the doubted labels, as plain JSON values."""
        return {
            "data": self.data.name,
            "classes": list(self.data.classes),
            "labels": int((self.labels != UNLABELLED).sum()),
            "doubted": int(self.doubted.sum()),
            "noise_rate": self.noise_rate.mean,
            "noise_rate_interval": None
            if math.isnan(self.noise_rate.low)
            else [self.noise_rate.low, self.noise_rate.high],
            "noise_matrix": [[round(value, 6) for value in row] for row in self.noise_matrix.tolist()],
            "noise_matrix_interval": [
                [[round(value, 6) for value in row] for row in end.tolist()] for end in self.matrix_interval
            ],
            "plain_accuracy": self.plain_accuracy,
            "cleaned_accuracy": self.cleaned_accuracy,
            "repair": self.repair,
            "issues": [row for row in self.rows() if row["doubted"]],
        }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
