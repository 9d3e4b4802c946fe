"""Meta soft label generation for noisy labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import hard_labels
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods.mslg.labels import Entropy, LearnedLabels, reverse_kl
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.training.learner import Learner
from tutelage.training.meta import virtual_step
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
    """Learned labels: every sample's soft label moves so that a step on it lowers the loss on trusted samples.

    Stage 1: CE(z, y) with the labels given. Stage 2: sample i has scores s_i in R^C, which begin as K times its one-hot
    label, and the soft label y_i = softmax(s_i). With a batch (x, i) and a batch (x_m, y_m) of the meta set, at once:
    L_c = mean over samples and classes of p (log p - log y_i), p = softmax(z(x)), which is KL(p || y) / C;
    theta' = theta - alpha dL_c/dtheta, a virtual step; s_i <- s_i - beta d CE(z_theta'(x_m), y_m) / ds_i. Then one step
    of the optimiser on L_c, with the new y_i, + gamma L_e, L_e = -mean of p log p. theta learns nothing from the meta
    loss, and the scores nothing from L_c + gamma L_e, which for gamma = 1 is the reverse cross-entropy -mean p log y.
    The meta set are the training part's trusted samples (``--noise 0.4+trusted:10``). They are in stage 1 with all
    others, and apart in stage 2. Where there are none, it is those of every class with the smallest loss on their label
    when stage 1 is done.

    Args:
        run: what to train; a teacher, if it has one, is not used. Both stages together take the run's epochs (each one
            at least).
        alpha: the learning rate of the virtual step.
        beta: the learning rate of the scores; 4000 is the authors' on CIFAR and Fashion-MNIST, 1500 on Clothing1M and
            Food-101N. It has to suit the meta-gradient, which grows with alpha and falls with the batch size and C, so
            tune it: too large a beta sends the network to chance.
        gamma: the weight of the entropy.
        initial: K; 10 gives the label 0.9996 of ten classes.
        warmup_share: the share of the epochs that stage 1 takes; the authors' CIFAR-10 run has 44 of 120.
        meta_share: without trusted samples, the share of the training part that becomes the meta set, the same number
            of each class. The authors take 4000 of CIFAR-10's 50000.
        max_step: the longest step (L2) of one sample's scores. A guard of ours against a beta that is too large; the
            authors have none.

    Deviations: the learning rate is constant in stage 1 and then takes the run's whole course in stage 2, with the
    optimiser's momentum fresh; the authors' is a tenth after a third of all epochs, a hundredth after two thirds. The
    meta batch leaves the running statistics of batch normalisation alone; the authors' code lets it in. A trusted
    sample takes part in stage 1. Soft labels in the data begin as K times themselves, and a sample without a label with
    the uniform one [inferred]. Stage 2 computes in float32, without ``torch.compile`` and fused attention, for the sake
    of the second derivatives, and in one process.
    """
    if run.processes.world > 1:
        raise TutelageError(
            f"MSLG differentiates through a step, which cannot be shared by {run.processes.world} processes; start one"
        )
    student, train = run.student(), run.data.train
    warmup = max(1, round(warmup_share * run.epochs))
    run.fit(Learner(student, None, {"ce": CrossEntropy()}), epochs=warmup, schedule="constant")
    chosen = train.trusted
    if chosen is None or not chosen.any():
        chosen = smallest_losses(run.predict(student, train), train.labels, meta_share)
    if chosen.all() or not chosen.any():
        raise TutelageError(
            f"MSLG needs samples to learn from and others to check by, and its meta set is {int(chosen.sum())} of the "
            f"{len(train)} training samples; give more samples with labels, or another number of trusted ones"
        )
    rest = train.subset((~chosen).nonzero().squeeze(1))
    labels = LearnedLabels(rest, first_scores(rest.labels, run.data.num_classes, initial))
    run.fit(
        Learner(student, None, {"labels": labels, "entropy": gamma * Entropy()}),
        data=replace(run.data, train=rest),
        streams={"meta": train.subset(chosen.nonzero().squeeze(1))},
        update=MetaLabels(labels, alpha, beta, max_step),
        epochs=max(1, run.epochs - warmup),
    )
    return student


@dataclass(frozen=True, slots=True)
class MetaLabels:
    """A step of stage 2: first the labels of the batch move by the meta-gradient, then the network learns from them.

    The network is run on the batch once, and that pass serves the virtual step and the real one. The scores are the
    term's, which keeps them in checkpoints.
    """

    labels: LearnedLabels
    alpha: float
    beta: float
    max_step: float | None = None

    def __call__(self, step: Step) -> None:
        """Do the step."""
        (learner,) = step.learners
        logits = step.forward(learner, eager=True)["logits"]
        scores = self.labels.scores(step.batch.index).requires_grad_()
        loss = reverse_kl(logits, scores.log_softmax(-1)).mean()
        moved = virtual_step(learner.model, loss, self.alpha)
        meta = step.draw("meta")
        meta_loss = cross_entropy(learner.model.with_parameters(moved, meta.inputs), meta.targets).mean()
        (gradient,) = torch.autograd.grad(meta_loss, scores)
        change = -self.beta * gradient
        if self.max_step is not None:
            change *= (self.max_step / change.norm(dim=1, keepdim=True)).clamp(max=1)
        self.labels.move(step.batch.index, change)
        step.update(learner, step.loss(learner))


def first_scores(labels: Tensor, classes: int, initial: float) -> Tensor:
    """K times the labels, (N, C) float32: one-hot ones, soft ones as they are, 0 for a sample without a label."""
    if labels.ndim == 2:
        return initial * labels.float()
    return initial * F.one_hot(labels + 1, classes + 1)[:, 1:].float()


def smallest_losses(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Which samples become the meta set where none is trusted, (N,) bool: of each class those of smallest loss.

    Args:
        logits: (N, C), the warmed-up network's.
        labels: (N,) int64 or (N, C) soft, as given; a sample without a label is never chosen.
        share: of the N samples, in all; at least one of each class.
    """
    classes = logits.shape[1]
    hard = hard_labels(labels)
    losses = cross_entropy(logits, labels)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(classes):
        places = (hard == label).nonzero().squeeze(1)
        chosen[places[losses[places].argsort(stable=True)[: max(1, round(share * len(labels) / classes))]]] = True
    return chosen
