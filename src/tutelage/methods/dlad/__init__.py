"""Decentralised learning with adaptive distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.data.conditions.condition import stream
from tutelage.data.data import Data
from tutelage.data.loader import mix_seeds
from tutelage.data.orders import class_balanced
from tutelage.data.stratified import stratified_split
from tutelage.data.targets import class_counts
from tutelage.errors import TutelageError
from tutelage.methods import Positive, method
from tutelage.methods.dlad.partition import by_classes, by_dirichlet
from tutelage.methods.dlad.weights import aggregate, certainty, odds_shares, shares
from tutelage.models.tapped import Tapped
from tutelage.tasks.task import check_single_label
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run

Weights = Literal["confidence", "odds", "probability", "entropy", "uniform"]

SHARED, OWN = 0, 1  # classes of the samples on which a client's confidence is trained


@method(paper="Ma, Yonetani, Iqbal 2020, arXiv 2008.07948", family="decentralised", evidence="abstract")
def dlad(
    run: Run,
    *,
    clients: Annotated[int, Field(ge=1, le=64)] = 5,
    classes: Annotated[int, Field(ge=1)] | None = None,
    alpha: Positive | None = None,
    networks: tuple[str, ...] = (),
    shared: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    weights: Weights = "confidence",
    temperature: Positive = 1.0,
    confidence_epochs: Annotated[float, Field(gt=0, le=1)] = 0.5,
) -> Tapped:
    """Decentralised learning with adaptive distillation (DLAD): combine clients by how well each knows a sample.

        y(x) = sum_i w_i(x) f_i(x),   w_i(x) = g_i(x) / sum_j g_j(x),   L = CE(h(x), y(x)) on unlabelled samples x

    Clients with private labelled samples of different distributions share networks instead of data, once. They all have
    the unlabelled samples.

    1. Client i trains a classifier f_i on its own samples with cross-entropy. It has outputs for all classes.
    2. Client i trains its confidence g_i, a network that separates its own samples from the unlabelled ones; each batch
       has as many of both. Its optimum p_i / (p_i + p), for the densities p_i of the own and p of the unlabelled
       samples, is large only where the client has seen similar samples.
    3. The student h is trained on the soft labels y, which are computed once, without augmentation.

    These are 2 N + 1 fits for N clients; N + 1 if the weights do not need g.

    Args:
        run: the run; a teacher is not used. Its labelled training samples are divided among the clients, and the
            unlabelled ones (``--noise missing:RATE``) are the shared samples.
        clients: N.
        classes: the number of classes of each client; samples of a class are divided evenly among its clients. By
            default C / N, rounded up: no class belongs to two clients if N divides C. With C, all clients have the same
            distribution.
        alpha: divide each class by shares from a Dirichlet distribution of this concentration, in place of ``classes``.
        networks: names of built-in networks for the clients, in turn; by default that of the student. A confidence has
            the network of its client.
        shared: if all samples are labelled, this share of each class loses its labels; these are the shared samples.
        weights: "confidence"; "odds", the softmax over clients of logit(g_i) / T; or, without g, proportional to the
            largest "probability" of f_i; by "entropy" to 1 - H(f_i) / log C; or "uniform", the plain average.
        temperature: T of "odds".
        confidence_epochs: the share of the epochs for which g is trained. It has to end early: a g that memorises the
            client's samples is 0 on all others.

    Raises:
        TutelageError: both ``classes`` and ``alpha``, or a division that leaves a class or a client without samples.

    ``result.json`` records the class counts of each client, the mean of sum_i g_i over the shared samples, which is
    near 0 if no client knows them, and the accuracy of y, if the true classes of these samples are known.

    Evidence: the abstract names private labelled data of different distributions, clients of different architectures,
    unlabelled samples to distil on, and weights by the confidence of each client. That the confidence separates own
    from unlabelled samples is [from memory]. Balanced batches, the early end, the normalisation of the weights (equal
    ones for a sum below 1e-8) and all numbers are [inferred].

    Privacy: f_i and g_i leave the client. g_i is trained to recognise the client's samples and therefore reveals more
    about them than f_i.

    Deviations: clients normalise inputs with the statistics of the whole training split. g has the outputs of a
    classifier, of which two are used: g = sigmoid(z_1 - z_0).
    """
    check_single_label("dlad", run.data)
    student = run.student()
    rows, private = shared_samples(run.data, shared, run.seed)
    parts = client_parts(run, private, clients, classes, alpha)
    unlabelled = run.data.train.subset(rows)
    epochs = max(1, round(confidence_epochs * run.epochs)) if weights in ("confidence", "odds") else 0
    outputs = [client_outputs(run, part, rows, number, networks, epochs) for number, part in enumerate(parts, 1)]
    targets = soft_labels(outputs, weights, temperature)
    _note(run, parts, outputs, targets, unlabelled.clean_labels)
    train = replace(unlabelled, labels=targets)
    run.fit(Learner(student, None, {"ce": CrossEntropy()}), data=replace(run.data, train=train))
    return student


@dataclass(frozen=True)
class ClientOutputs:
    """What a client predicts for S shared samples.

    Attributes:
        probabilities: f, (S, C).
        confidence: logit of g, (S,); ``None`` if the client has no confidence.
    """

    probabilities: Tensor
    confidence: Tensor | None


def shared_samples(data: Data, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The sorted indices of the shared and of the private training samples.

    Args:
        data: the data set.
        share: how many of the samples are shared, if all have a label.
        seed: of the choice of these.

    Raises:
        TutelageError: there would be no shared or no private sample.
    """
    labels = data.targets.classes(data.train.labels)
    missing = labels == UNLABELLED
    if bool(missing.any()):
        rows, private = missing.nonzero()[:, 0], (~missing).nonzero()[:, 0]
    else:
        remaining, held_out = stratified_split(labels, round(share * len(labels)), mix_seeds(seed, 5) % 2**32)
        rows, private = torch.from_numpy(held_out), torch.from_numpy(remaining)
    if not len(rows) or not len(private):
        raise TutelageError(
            f"dlad needs private samples with labels and shared ones, and of the {len(labels)} training samples of "
            f"{data.name} {len(private)} would be private; add samples, or change shared={share}"
        )
    return rows, private


def client_parts(run: Run, private: Tensor, clients: int, classes: int | None, alpha: float | None) -> list[Tensor]:
    """The indices of the training samples of each client; see ``dlad``."""
    if classes is not None and alpha is not None:
        raise TutelageError(f"dlad divides samples by classes={classes} or by alpha={alpha}; give one of the two")
    data = run.data
    labels = data.targets.classes(data.train.labels)[private].cpu().numpy()
    generator, count = stream("dlad", run.seed), data.num_classes
    if alpha is not None:
        parts = by_dirichlet(labels, count, clients, alpha, generator)
    else:
        parts = by_classes(labels, count, clients, classes or -(-count // clients), generator)
    return [private[torch.from_numpy(part)] for part in parts]


def client_outputs(
    run: Run, own: Tensor, shared: Tensor, number: int, networks: tuple[str, ...], confidence_epochs: int
) -> ClientOutputs:
    """Train the classifier and the confidence of a client, and return their outputs for the shared samples.

    Args:
        run: the run.
        own, shared: indices of training samples.
        number: of the client, from 1.
        networks: names of networks, of which clients take turns; the student's if empty.
        confidence_epochs: 0 for no confidence.
    """
    train = run.data.train

    def network(seed_number: int) -> Tapped:
        if networks:
            return run.network(networks[(number - 1) % len(networks)], seed_number)
        return run.student(seed_number)

    classifier = network(2 * number)
    data = replace(run.data, train=train.subset(own), validation=None)
    run.fit(Learner(classifier, None, {"ce": CrossEntropy()}), data=data)
    probabilities = run.predict(classifier, train.subset(shared)).softmax(1)
    if not confidence_epochs:
        return ClientOutputs(probabilities, None)
    confidence = network(2 * number + 1)
    origins = torch.cat([torch.full((len(own),), OWN), torch.full((len(shared),), SHARED)])
    both = replace(train.subset(torch.cat([own, shared])), labels=origins)
    run.fit(
        Learner(confidence, None, {"ce": CrossEntropy()}),
        data=replace(run.data, train=both, validation=None),
        order=class_balanced,
        epochs=confidence_epochs,
    )
    logits = run.predict(confidence, train.subset(shared))
    return ClientOutputs(probabilities, logits[:, OWN] - logits[:, SHARED])


def soft_labels(outputs: Sequence[ClientOutputs], weights: Weights, temperature: float) -> Tensor:
    """y, (S, C) float32: the weighted mean of the clients' probabilities; see ``dlad``."""
    probabilities = torch.stack([output.probabilities for output in outputs])
    if weights == "probability":
        shares_of = shares(probabilities.amax(2))
    elif weights == "entropy":
        shares_of = shares(certainty(probabilities))
    elif weights == "uniform":
        shares_of = shares(torch.ones(probabilities.shape[:2]))
    else:
        logits = _confidences(outputs)
        shares_of = odds_shares(logits, temperature) if weights == "odds" else shares(logits.sigmoid())
    return aggregate(probabilities, shares_of)


def _confidences(outputs: Sequence[ClientOutputs]) -> Tensor:
    """Logits of g, (N, S)."""
    return torch.stack([output.confidence for output in outputs if output.confidence is not None])


def _note(run: Run, parts: list[Tensor], outputs: Sequence[ClientOutputs], targets: Tensor, classes: Tensor) -> None:
    labels = run.data.targets.classes(run.data.train.labels)
    run.note(clients=[class_counts(labels[part], run.data.num_classes) for part in parts])
    if outputs[0].confidence is not None:
        run.note(confidence=float(_confidences(outputs).sigmoid().sum(0).mean()))
    known = classes >= 0
    if bool(known.any()):
        run.note(target_accuracy=float((targets.argmax(1) == classes)[known].float().mean()))
