"""Channel-wise knowledge distillation for dense prediction."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import ChannelDivergence
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Shu, Liu, Gao, Yan, Shen 2021, arXiv 2011.13256", family="response", task="segmentation", evidence="code"
)
def cwd(
    run: Run,
    *,
    temperature: Positive = 4.0,
    weight: NonNegative = 3.0,
    features: NonNegative = 0.0,
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Channel-wise distillation (CWD): match where in the image each channel of the teacher's maps is large.

        L   = CE(z, y) + weight CWD(logits) + features CWD(last stage)
        CWD = T^2 / C sum_c KL(phi(y^T_c) || phi(y^S_c)),   phi(y_c)_i = exp(y_ci / T) / sum_j exp(y_cj / T)

    phi is the softmax over the positions i of channel c, not over channels: only the shape of each map is matched, not
    its mean. The loss is averaged over the batch. KL weights positions by the teacher's values, so that it reads little
    of the background. Smaller maps are enlarged bilinearly. If the last stages have different numbers of channels, a
    1x1 convolution adapts the student's.

    Args:
        run: the run.
        temperature: T; 4 in the paper [from memory].
        weight: of the logits; 3 in the paper [from memory], and in the names of the authors' result folders.
        features: the weight of the last stage of the encoder; 50 in the paper [from memory], 35 and 40 in the names of
            the authors' result folders. The default, 0, matches the logits alone.
        kd_alpha: combine with Hinton's loss of each pixel: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: the authors add the cross-entropy of an auxiliary head with weight 0.4, and an adversarial and a
    pixel-wise loss as options; these are not implemented. One temperature serves logits and features.
    """
    student, teacher = run.student(), run.teacher()
    terms = run.label_terms(kd_alpha, kd_temperature) | {"cwd": weight * ChannelDivergence(temperature=temperature)}
    if features:
        *_, last = run.paired_stages(student, teacher)
        terms["features"] = features * ChannelDivergence(*last, temperature)
    run.fit(Learner(student, run.frozen(teacher), terms))
    return student
