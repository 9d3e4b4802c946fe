"""Features placed along the vectors of a fixed orthonormal basis, one for each class."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.errors import TutelageWarning
from tutelage.methods import Positive, method
from tutelage.methods.orthogonal.loss import Form, OrthogonalPlacement
from tutelage.methods.orthogonal.surgery.orthogonal import COSINES, Kind, Places
from tutelage.methods.orthogonal.surgery.orthogonal import apply as add_places
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run

CHECKED_SAMPLES = 64  # whose features are looked at before training


@method(paper="Cancela, Bolon-Canedo, Alonso-Betanzos 2020, ICPR", family="metric learning", evidence="abstract")
def orthogonal(
    run: Run,
    *,
    form: Form = "direction",
    basis: Kind = "identity",
    projection: bool = True,
    scale: Positive = 16.0,
) -> Tapped:
    """Orthogonal placement: train the features of each class towards its vector of a fixed orthonormal basis.

    With h the input of the classifier, b_c the vector of class c and u_c = b_c^T h / ||h||:

        direction (A):      L = ||h / ||h|| - b_y||^2 = 2 - 2 u_y
        squares (B):        L = sum_c (u_c - 1[c = y])^2
        cross_entropy (C):  L = CE(scale u, y)
        energy (D):         L = -log(u_y^2 + 1e-8)

    The vectors replace the classifier: they are not trained, and saved with the weights. The prediction is the largest
    u_c, for the form energy the largest u_c^2. The network's logits are scale u, or log(u^2 + 1e-8) for energy. The
    network needs at least as many features as there are classes; a hadamard basis needs a power of two.

    The notes of the result have ``own_cosine``, the mean cosine between the class means of the training features and
    their own vectors (for energy, of features reversed where they point away), and ``other_cosine``, the mean absolute
    cosine to the other vectors.

    Args:
        run: the run; a teacher is not used.
        form: of the loss. With soft labels, squares or cross_entropy.
        basis: identity (the first axes), random (of the run's seed), or hadamard (elements +-1 / sqrt(d)).
        projection: add a trained linear layer d to d before the vectors. Without it, features behind a ReLU are never
            negative: of the identity basis, a class is lost for good if its one feature becomes 0 for all samples;
            vectors with negative elements cannot be reached, which a warning says, and with a hadamard basis the
            prediction is always class 0, whose vector is constant.
        scale: of the logits, and in the loss of the form cross_entropy.

    Raises:
        TutelageError: the network has no linear classifier or too few features.

    Evidence: only the abstract of the paper could be read, which names the fixed orthogonal basis, the projection of
    features and "a set of loss functions", without formulas. All four forms, the bases, the defaults and the projection
    are [inferred]: they are not the authors' exact losses.

    Deviations: the projection is on by default, since the features of most networks are behind a ReLU. Gradients are
    proportional to 1 / ||h||, so that batch normalisation before h is advisable. That of energy with respect to u_y
    reaches 1e4 near u_y = 0: set a gradient clip, or use an adaptive optimizer.
    """
    student = run.student()
    add_places(
        student.module,
        run.example(student),
        basis=basis,
        seed=run.seed,
        projection=int(projection),
        scores="energy" if form == "energy" else "cosine",
        scale=scale,
    )
    student = student.rewrapped()
    if basis != "identity":
        _warn_of_non_negative_features(run, student)
    run.fit(Learner(student, None, {"placement": OrthogonalPlacement(form, scale)}))
    own, other = class_cosines(run, student, signed=form != "energy")
    run.note(own_cosine=own, other_cosine=other)
    return student


def class_cosines(run: Run, student: Tapped, *, signed: bool = True) -> tuple[float, float]:
    """The mean cosine of class means to their own vectors, and the mean absolute cosine to those of other classes.

    The means are over the features of the training samples, in eval mode and without augmentation; classes without a
    sample do not count.

    Args:
        run, student: the run, and the student that it trained.
        signed: whether h and -h are different places; if not, features that point away from the vector of their class
            are reversed first.
    """
    features = run.predict(student, run.data.train, ("embedding",))
    labels = hard_labels(run.data.train.labels).cpu()
    basis = places_of(student.module).cpu()
    classes = sorted({*labels.tolist()} - {UNLABELLED})
    if not signed:
        away = (features * basis[labels.clamp(min=0)]).sum(1, keepdim=True) < 0
        features = features.where(~away, -features)
    means = torch.stack([features[labels == label].mean(0) for label in classes])
    cosines = nn.functional.normalize(means) @ basis.T
    is_own = torch.tensor(classes)[:, None] == torch.arange(len(basis))
    return float(cosines[is_own].mean()), float(cosines[~is_own].abs().mean())


def places_of(network: nn.Module) -> Tensor:
    """The fixed vectors of a network, (C, d)."""
    (places,) = (module for module in network.modules() if isinstance(module, Places))
    return places.basis


def _warn_of_non_negative_features(run: Run, student: Tapped) -> None:
    """Warn if no feature of a few training samples is negative, so that a ReLU precedes the fixed vectors."""
    sample = run.data.train.subset(torch.arange(min(CHECKED_SAMPLES, len(run.data.train))))
    if bool((run.predict(student, sample, ("embedding",)) >= 0).all()):
        warnings.warn(
            f"the features of {type(student.module).__name__} are never negative, as behind a ReLU, and cannot point "
            "along vectors with negative elements; set projection=true",
            TutelageWarning,
            stacklevel=2,
        )


__all__ = ["COSINES", "class_cosines", "orthogonal", "places_of"]
