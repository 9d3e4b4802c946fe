"""Meta soft label generation for noisy labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import hard_labels
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods.mslg.labels import LearnedLabels, reverse_kl
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.entropy import Entropy
from tutelage.training.learner import Learner
from tutelage.training.meta import check_single_process, virtual_step
from tutelage.training.run import Run
from tutelage.training.updates import Step


@method(paper="Algan, Ulusoy 2020, arXiv 2007.05836", family="noisy labels", evidence="code")
def mslg(
    run: Run,
    *,
    alpha: NonNegative = 0.5,
    beta: NonNegative = 4000.0,
    gamma: NonNegative = 1.0,
    initial: Positive = 10.0,
    warmup_share: Share = 44 / 120,
    meta_share: Share = 0.08,
    max_step: Positive | None = None,
) -> Tapped:
    """Meta soft label generation (MSLG, label noise): learn a soft label per sample that lowers a trusted loss.

    Stage 1 trains on CE(z, y) with the given labels. In stage 2 sample i has scores s_i in R^C, initially K times its
    one-hot label, and the soft label y_i = softmax(s_i). Each step uses a batch (x, i) and a batch (x_m, y_m) of the
    meta set:

        L_c    = mean over samples and classes of p (log p - log y_i) = KL(p || y) / C,   p = softmax(z(x))
        theta' = theta - alpha dL_c/dtheta,   a virtual (look-ahead) step
        s_i   <- s_i - beta d CE(z_theta'(x_m), y_m) / ds_i

    followed by one step of the optimiser on L_c + gamma L_e, with the new y_i and L_e = -mean of p log p. The weights
    theta get no gradient from the meta loss, and the scores none from L_c + gamma L_e, which for gamma = 1 is the
    reverse cross-entropy -mean of p log y.
    The meta set are the trusted samples of the training split (``--noise 0.4+trusted:10``), which stage 1 uses as well.
    Without trusted samples, it is the samples of each class with the smallest loss on their label after stage 1.

    Args:
        run: the run; a teacher is not used. Both stages together take its epochs (at least one each).
        alpha: the learning rate of the virtual step.
        beta: the learning rate of the scores: the authors have 4000 on CIFAR and Fashion-MNIST, 1500 on Clothing1M and
            Food-101N. It must suit the meta-gradient, which grows with alpha and falls with the batch size and C, so
            tune it: with too large a value, accuracy falls to chance.
        gamma: the weight of the entropy.
        initial: K; with 10 and ten classes, the initial probability of the label is 0.9996.
        warmup_share: the share of the epochs that stage 1 takes; 44 of 120 in the authors' CIFAR-10 run.
        meta_share: without trusted samples, the share of the training split that becomes the meta set, equally many of
            each class. The authors use 4000 of CIFAR-10's 50000.
        max_step: the maximum length (L2) of a step of one sample's scores, a safeguard against too large a beta. Not in
            the paper.

    Deviations: the learning rate is constant in stage 1 and follows the run's whole schedule in stage 2, with a new
    optimiser; the authors' is divided by 10 after a third and two thirds of all epochs. The meta batch does not update
    the running statistics of batch normalisation; in the authors' code it does. Trusted samples take part in stage 1.
    Soft labels in the data start as K times themselves, and a sample without a label starts with the uniform
    distribution [inferred]. Because of the second derivatives, stage 2 computes in float32, without ``torch.compile``
    and fused attention, in a single process.
    """
    check_single_process("MSLG", run.processes)
    student, train = run.student(), run.data.train
    warmup = max(1, round(warmup_share * run.epochs))
    run.fit(Learner(student, None, {"ce": CrossEntropy()}), epochs=warmup, schedule="constant")
    meta = train.trusted
    if meta is None or not meta.any():
        meta = smallest_losses(run.predict(student, train), train.labels, meta_share)
    if meta.all() or not meta.any():
        raise TutelageError(
            f"MSLG needs training samples and a separate meta set, but its meta set is {int(meta.sum())} of the "
            f"{len(train)} training samples; add samples with labels, or change the number of trusted ones"
        )
    noisy = train.subset((~meta).nonzero().squeeze(1))
    labels = LearnedLabels(noisy, initial_scores(noisy.labels, run.data.num_classes, initial))
    run.fit(
        Learner(student, None, {"labels": labels, "entropy": gamma * Entropy()}),
        data=replace(run.data, train=noisy),
        streams={"meta": train.subset(meta.nonzero().squeeze(1))},
        update=MetaLabels(labels, alpha, beta, max_step),
        epochs=max(1, run.epochs - warmup),
    )
    return student


@dataclass(frozen=True, slots=True)
class MetaLabels:
    """The update rule of stage 2: update the labels of the batch by the meta-gradient, then the network on them.

    One forward pass on the batch serves both the virtual and the real step. The scores belong to the term, so that
    checkpoints hold them.
    """

    labels: LearnedLabels
    alpha: float
    beta: float
    max_step: float | None = None

    def __call__(self, step: Step) -> None:
        """Update labels and network."""
        (learner,) = step.learners
        logits = step.forward(learner, eager=True)["logits"]
        scores = self.labels.scores(step.batch.index).requires_grad_()
        loss = reverse_kl(logits, scores.log_softmax(-1)).mean()
        parameters = virtual_step(learner.model, loss, self.alpha)
        meta = step.draw("meta")
        meta_loss = cross_entropy(learner.model.with_parameters(parameters, meta.inputs), meta.targets).mean()
        (gradient,) = torch.autograd.grad(meta_loss, scores)
        change = -self.beta * gradient
        if self.max_step is not None:
            change *= (self.max_step / change.norm(dim=1, keepdim=True)).clamp(max=1)
        self.labels.add(step.batch.index, change)
        step.update(learner, step.loss(learner))


def initial_scores(labels: Tensor, classes: int, initial: float) -> Tensor:
    """K times the one-hot or soft labels, (N, C) float32; 0 for a sample without a label."""
    if labels.ndim == 2:
        return initial * labels.float()
    return initial * F.one_hot(labels + 1, classes + 1)[:, 1:].float()


def smallest_losses(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Select the samples of smallest loss in each class as the meta set, if none are trusted: (N,) bool.

    Args:
        logits: (N, C), of the network after stage 1.
        labels: (N,) int64 or soft labels (N, C), as given; a sample without a label is never selected.
        share: of all N samples; at least one sample of each class is selected.
    """
    classes = logits.shape[1]
    hard = hard_labels(labels)
    losses = cross_entropy(logits, labels)
    selected = torch.zeros(len(labels), dtype=torch.bool)
    count = max(1, round(share * len(labels) / classes))
    for label in range(classes):
        indices = (hard == label).nonzero().squeeze(1)
        selected[indices[losses[indices].argsort(stable=True)[:count]]] = True
    return selected
