"""Online subclass knowledge distillation: attraction to near samples of the class, and repulsion from near others."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.data.orders import class_balanced, shuffled
from tutelage.methods import NonNegative, Positive, method
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.terms.precision import full_precision
from tutelage.terms.soft_targets import soft_targets
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term, Weighted
from tutelage.terms.unit import unit
from tutelage.training.learner import Learner
from tutelage.training.run import Run

Space = Literal["embedding", "logits"]
Form = Literal["distance", "soft"]


@method(paper="Tzelepi, Passalis, Tefas 2020, ICPR", family="self-distillation", evidence="abstract")
def oskd(
    run: Run,
    *,
    weight: NonNegative = 0.5,
    neighbours: Annotated[int, Field(ge=1)] = 1,
    other_neighbours: Annotated[int, Field(ge=0)] = 1,
    space: Space = "embedding",
    form: Form = "distance",
    margin: Positive | None = None,
    temperature: Positive = 4.0,
    balanced: bool = False,
) -> Tapped:
    """Online subclass distillation (OSKD): pull each sample to its nearest neighbours of its class in the batch.

        L = CE(z, y) + lambda mean over i of (||h_i - mu+_i||^2 - ||h_i - mu-_i||^2)

    mu+_i is the mean of the k+ nearest other samples of the same class, which are likely of the same hidden subclass,
    and mu-_i that of the k- nearest samples of other classes. Neighbours and means have no gradient. h is the input of
    the classifier, scaled to length 1, so that the loss is bounded below. There is no teacher and one forward pass; the
    network does not change. A sample without a neighbour of one kind has no such part.

    Attraction alone, or many neighbours, pull a class to its centre and destroy the subclasses. With small batches the
    nearest neighbour is arbitrary: a batch should hold at least four samples of each expected subclass of each class.
    Whether subclasses become purer also depends on the learning rate: on odd and even digits they do at 0.001 of Adam,
    and the reverse at 0.01 (``docs/results/oskd.md``).

    Args:
        run: the run; a teacher is not used.
        weight: lambda; 0.01 to 1 are reasonable.
        neighbours: k+; a class with fewer other samples in the batch uses those.
        other_neighbours: k-; 0 for attraction alone.
        space: in which h lies: "embedding", or "logits", as the authors' related papers do [from memory]. Logits of few
            classes hide subclasses.
        form: "distance" as above; "soft" matches soft labels instead: tau^2 KL of softmax(mean of the neighbours'
            logits / tau) and softmax(z_i / tau), without repulsion. The abstract's word is "soft labels" [inferred].
        margin: do not scale h to length 1, and bound the repulsion by max(0, margin - ||h_i - mu-_i||^2).
        temperature: tau, of the soft form.
        balanced: batches with as many samples of each class.

    Evidence: only the abstracts of the conference and the journal paper could be read. Attraction and repulsion are
    [from memory]; the weights, the scaling, the margin, the soft form and the defaults are [inferred]. Networks and
    data of the paper are not known.

    Deviations: soft labels count as their largest class, and samples without a label have no neighbours. With several
    processes, neighbours are those of each process's share of the batch.
    """
    student = run.student()
    term = Subclasses(
        neighbours,
        other_neighbours,
        space=space,
        form=form,
        margin=margin,
        temperature=temperature,
    )
    terms: dict[str, Term | Weighted] = {"ce": CrossEntropy(), "subclass": weight * term}
    run.fit(Learner(student, None, terms), order=class_balanced if balanced else shuffled)
    return student


@full_precision
def neighbour_means(features: Tensor, allowed: Tensor, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean of the values of each sample's nearest allowed samples, by squared Euclidean distances of features.

    Args:
        features: (B, D), between which distances are measured.
        allowed: (B, B) bool, which samples j can be neighbours of sample i.
        values: (B, E).
        count: the number of neighbours; all allowed ones if there are fewer.

    Returns:
        The means, (B, E), without gradients, 0 for a sample without neighbours; and which samples have one, (B,) bool.
    """
    features = features.detach()
    # Not by the Gram matrix, which loses small distances.
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.masked_fill(~allowed, torch.inf).topk(min(count, len(features)), largest=False).indices
    selected = torch.zeros_like(allowed).scatter(1, nearest, True) & allowed
    number = selected.sum(1, keepdim=True)
    return selected.to(values) @ values.detach() / number.clamp(min=1), number.squeeze(1) > 0


def neighbour_masks(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples j are another sample of the class of i, and which are of another class, (B, B) bool each.

    Args:
        targets: (B,) int64, ``-1`` for samples without a label, which are in no pair; or soft labels, whose largest
            class counts.
    """
    labels = checked_labels(targets)
    is_labelled = labels != UNLABELLED
    pairs, same = is_labelled[:, None] & is_labelled, labels[:, None] == labels
    return pairs & same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), pairs & ~same


@full_precision
def distances_to_neighbours(features: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """||h_i - mu_i||^2 of each sample, with mu_i the mean of its nearest allowed samples.

    Args:
        features: h, (B, D).
        allowed, count: as in ``neighbour_means``.

    Returns:
        (B,) in squared units of the features, 0 for a sample without neighbours; and which samples have one, (B,) bool.
    """
    means, has_one = neighbour_means(features, allowed, features, count)
    return (features - means).square().sum(1).where(has_one, 0.0), has_one


@full_precision
def subclass_loss(
    features: Tensor, targets: Tensor, neighbours: int = 1, other_neighbours: int = 1, margin: float | None = None
) -> Tensor:
    """Attraction minus repulsion, ||h_i - mu+_i||^2 - ||h_i - mu-_i||^2, per sample.

    With a margin m: ||h_i - mu+_i||^2 + [m - ||h_i - mu-_i||^2]_+.

    Args:
        features: h, (B, D) or (B, ...), flattened per sample. Without a margin the loss is bounded below only if their
            length is: by -4 for length 1.
        targets: as in ``neighbour_masks``.
        neighbours, other_neighbours: k+ and k-, the numbers of nearest samples whose means are mu+ and mu-.
        margin: m, in squared units of the features.

    Returns:
        (B,), in squared units of the features. A part for which a sample has no neighbours is 0. The gradient with
        respect to h_i is 2 (h_i - mu+_i) - 2 (h_i - mu-_i); none reaches the neighbours.
    """
    features = features.flatten(1)
    same, other = neighbour_masks(targets)
    attraction, _ = distances_to_neighbours(features, same, neighbours)
    repulsion, has_other = distances_to_neighbours(features, other, other_neighbours)
    if margin is None:
        return attraction - repulsion
    return attraction + (margin - repulsion).relu().where(has_other, 0.0)


class Subclasses(Term):
    """The loss of ``oskd`` besides cross-entropy, per sample (B,).

    Args:
        neighbours, other_neighbours, space, form, margin, temperature: as in ``oskd``.
    """

    reads_teacher = False

    def __init__(
        self,
        neighbours: int = 1,
        other_neighbours: int = 1,
        *,
        space: Space = "embedding",
        form: Form = "distance",
        margin: float | None = None,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        self.neighbours, self.other_neighbours, self.space = neighbours, other_neighbours, space
        self.form, self.margin, self.temperature = form, margin, temperature
        self.roles = tuple(dict.fromkeys([space, "logits"])) if form == "soft" else (space,)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,); in the distance form bounded below by -4, or by 0 with a margin."""
        targets = self.required(batch, "the batch, for its targets").targets
        features = at_least_float32(student[self.space]).flatten(1)
        if self.margin is None:
            features = unit(features)
        if self.form == "distance":
            return subclass_loss(features, targets, self.neighbours, self.other_neighbours, self.margin)
        same, _ = neighbour_masks(targets)
        means, has_one = neighbour_means(features, same, student["logits"], self.neighbours)
        return soft_targets(student["logits"], means, self.temperature).where(has_one, 0.0)
