"""Factor transfer."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms.factor import FactorTransfer, Paraphrase
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Kim, Park, Kwak 2018, arXiv 1802.04977", family="representation", task=None, evidence="abstract")
def ft(
    run: Run,
    *,
    weight: NonNegative = 10.0,
    rate: Positive = 0.5,
    share: Share = 0.1,
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Factor transfer (FT): match a compressed paraphrase of the teacher's last maps.

    Stage 1, without labels and without the student, trains an autoencoder (the paraphraser) of the teacher's last stage
    by the squared error. Its code is the factor F_T. Stage 2 trains the student:

        L = CE(z, y) + weight mean over elements of |F_S / ||F_S||_2 - F_T / ||F_T||_2|

    F_S is a trained translation of the student's last stage, by three 3x3 convolutions. Paraphraser and translator are
    discarded.

    Args:
        run: the run. Both stages together take its epochs (at least one each).
        weight: the weight, our choice. The authors' code has 500 [from memory], under which small students on 8 x 8
            digits fell far behind plain training.
        rate: channels of the factor as a share of the teacher's, 0.5 in the paper [from memory].
        share: the share of the epochs that stage 1 takes, our choice.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: the decoder has convolutions in place of transposed ones, which are equal at stride 1. Benchmarks
    compare the mean of the squares over channels; the paper, as here, all elements.
    """
    student, teacher = run.student(), run.teacher()
    *_, (student_role, teacher_role) = run.paired_stages(student, teacher)
    source, paraphrase = run.frozen(teacher), Paraphrase(teacher_role, rate)
    first_epochs = max(1, round(share * run.epochs))
    first_stage = Learner(student, source, {"paraphrase": paraphrase}, trainable=lambda name: False)
    run.fit(first_stage, epochs=first_epochs)
    terms = run.label_terms(kd_alpha, kd_temperature)
    terms["factors"] = weight * FactorTransfer((student_role, teacher_role), paraphrase)
    run.fit(Learner(student, source, terms), epochs=max(1, run.epochs - first_epochs))
    return student
