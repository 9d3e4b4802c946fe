"""On-manifold adversarial data augmentation."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from tutelage.data.batch import UNLABELLED
from tutelage.data.loader import mix_seeds
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods.omada.manifold import Manifold, trained_manifold
from tutelage.methods.omada.paths import CHOICES, Choice, OnManifold, Paths, entropies, latent_paths
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run

BATCH = 1024  # latents whose paths are computed at once


@method(paper="Patel, Beluch, Zhang, Pfeiffer, Yang 2020, arXiv 1912.07458", family="calibration", evidence="abstract")
def omada(
    run: Run,
    *,
    weight: NonNegative = 0.1,
    choice: Choice = "uniform",
    steps: Annotated[int, Field(ge=0)] = 20,
    size: Positive = 0.05,
    stop: Share = 0.9,
    latent: Annotated[int, Field(ge=1)] = 16,
    width: Positive = 0.25,
    penalty: NonNegative = 1e-3,
    manifold_epochs: Annotated[int, Field(ge=1)] | None = None,
) -> Tapped:
    """OMADA (calibration): also train on ambiguous images, decoded from latent paths that cross a decision boundary.

        z_0 = E(x),   z_{k+1} = z_k - eta g / ||g||,   g = d CE(c(z_k), t) / dz,   until p_t(z_k) >= kappa or k = K
        L = CE(f(x), y) + weight CE(f(G(z_k)), s_k),   s_k = softmax(c(z_k))

    Three fits: an autoencoder (encoder E, decoder G) on the training images; a classifier c of its latents, which keeps
    its epoch with the best held-out accuracy and is calibrated by a temperature; and the student f. The first two are
    frozen then. For each training image one path is computed, towards a class t that is drawn uniformly from the
    others; in each step of the last fit one of its points is drawn, decoded and used with its soft label.

    Networks are over-confident because they see few ambiguous inputs. The weight is the main parameter: the confidence
    falls with it, and above some weight the student is under-confident. Look at ``calibration_gap`` (mean confidence
    minus accuracy) beside ``ece``: a student that was calibrated already becomes worse.

    Args:
        run: the run; a teacher is not used. The data are images.
        weight: of the decoded images.
        choice: which point of a path: "uniform": any; "boundary": in proportion to the entropy of its soft label;
            "early": any before the predicted class changes.
        steps: K. With 0, the decoded images are reconstructions, a control: a blurred image need not be ambiguous.
        size: eta, as a share of the mean distance between the means of two classes' latents.
        stop: kappa, the probability of the target class that ends a path.
        latent: the length of the latents.
        width: of the autoencoder, as in ``autoencoder-<latent>x<width>``.
        penalty: the weight of the mean squared latent in the loss of the autoencoder.
        manifold_epochs: epochs of the autoencoder and, at most, of the latent classifier; by default the recipe's.

    ``notes`` in ``result.json``: the held-out accuracy and the temperature of the latent classifier; the share of paths
    whose last point it classifies differently from the first (``crossed``); the mean entropy of the soft labels at the
    first point and at the largest of each path. It is augmentation, and no defence against attacks on pixels.

    Raises:
        TutelageError: the data are not images, or have one class.

    Evidence: the abstract and the caption of its first figure. The separate latent classifier is [from memory]; the
    targets, the temperature, the sizes, one path for each image, and the rules that choose a point are [inferred]. The
    paper trains its manifold adversarially, with a large generator for the harder sets; this is a convolutional
    autoencoder with Adam at 1e-3. A fifth of the latents is held out of the classifier's training.
    """
    if len(run.data.input_shape) != 3:
        raise TutelageError(
            f"omada decodes images, and {run.data.name} has {run.data.modality.noun} of shape {run.data.input_shape}; "
            "use data of images"
        )
    if run.data.num_classes < 2:
        raise TutelageError("a path of omada leads to another class, and there is one class; use data of two or more")
    student = run.student()
    epochs = run.epochs if manifold_epochs is None else manifold_epochs
    manifold = trained_manifold(run, latent, width, penalty, epochs)
    fit_student(run, student, manifold, weight=weight, choice=choice, steps=steps, size=size, stop=stop)
    return student


def fit_student(
    run: Run,
    student: Tapped,
    manifold: Manifold,
    *,
    weight: float,
    choice: Choice = "uniform",
    steps: int = 20,
    size: float = 0.05,
    stop: float = 0.9,
) -> None:
    """Compute the paths and train the student on images and decoded points; arguments as in ``omada``."""
    paths = paths_of(run, manifold, steps=steps, size=size, stop=stop)
    predicted, entropy = paths.labels.argmax(2), entropies(paths.labels)
    run.note(
        **manifold.notes,
        crossed=float((predicted[:, -1] != predicted[:, 0]).float().mean()),
        entropy_at_start=float(entropy[:, 0].mean()),
        entropy_at_peak=float(entropy.amax(1).mean()),
    )
    view = OnManifold(run.data.train, paths, CHOICES[choice](paths), manifold.decoder)
    run.fit(Learner(student, None, run.label_terms() | {"omada": weight * CrossEntropy().on(view)}))


def paths_of(run: Run, manifold: Manifold, *, steps: int, size: float, stop: float) -> Paths:
    """A path for each training sample, towards a class that is drawn uniformly from the others by the run's seed.

    The class of a sample without a label is the predicted one.

    Args:
        run: the run.
        manifold: its networks and the latents.
        steps, stop: K and kappa.
        size: eta, as a share of the mean distance between the means of two classes.
    """
    latents, classifier, classes = manifold.latents, manifold.classifier, run.data.num_classes
    with torch.no_grad():
        start = torch.where(manifold.labels == UNLABELLED, classifier(latents).argmax(1), manifold.labels)
    offset = torch.randint(1, classes, (len(start),), generator=torch.Generator().manual_seed(mix_seeds(run.seed, 5)))
    targets = (start + offset.to(start.device)) % classes
    centroids = torch.stack([latents[start == c].mean(0) for c in range(classes) if bool((start == c).any())])
    distance = float(torch.pdist(centroids).mean()) if len(centroids) > 1 else float(latents.std())
    limit = float(latents.norm(dim=1).max())
    parts = [
        latent_paths(classifier, part, target, steps=steps, size=size * distance, stop=stop, limit=limit)
        for part, target in zip(torch.split(latents, BATCH), torch.split(targets, BATCH), strict=True)
    ]
    return Paths(*(torch.cat(values) for values in zip(*parts, strict=True)))
