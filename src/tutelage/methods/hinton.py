"""Distilling the knowledge in a neural network."""

from __future__ import annotations

from tutelage.methods import Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Hinton, Vinyals, Dean 2015, arXiv 1503.02531", family="response", task=None, evidence="abstract")
def hinton(run: Run, *, temperature: Positive = 4.0, alpha: Share = 0.9) -> Tapped:
    """Knowledge distillation (Hinton): match the labels and the teacher's softened class probabilities.

        L = (1 - alpha) CE(z, y) + alpha T^2 KL(softmax(v / T) || softmax(z / T))

    z are the student's logits and v the teacher's on the same augmented batch. The divergence is summed over classes
    and averaged over the batch. Several teachers are averaged as softened probabilities. With alpha = 0 the result is
    bit for bit that of ``plain``.

    Args:
        run: the run.
        temperature: T. Both defaults are those of the code of Zagoruyko and Komodakis (AT) and of the later work of the
            study's authors; the 2015 paper has T = 20 on MNIST and 2.5 to 10 for small students [from memory].
        alpha: the weight of the soft targets.

    Deviations: none known. The paper gives the hard labels "a considerably lower" weight, without a number.
    """
    student = run.student()
    run.fit(Learner(student, run.frozen(*run.teachers()), run.label_terms(alpha, temperature)))
    return student
