"""A regulariser that pulls the weights of each output unit to norm 1, in place of weight decay."""

from __future__ import annotations

from typing import Literal

import torch

from tutelage.methods import NonNegative, method
from tutelage.methods.norm_loss.loss import NormLoss, decoupled, regularized_layers, unit_norms, unit_weights
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.optim import ParameterOptions
from tutelage.training.run import Run


@method(
    paper="Georgiou, Schmitt, Baeck, Chen, Lew 2020, arXiv 2103.06583",
    family="regularisation",
    task=None,
    evidence="abstract",
)
def norm_loss(
    run: Run, *, weight: NonNegative = 0.01, form: Literal["auto", "coupled", "decoupled"] = "auto"
) -> Tapped:
    """Norm Loss: pull the weights of each output unit to norm 1, in place of weight decay.

        L = label loss + lambda sum over layers and output units o of (1 - ||w_o||_2)^2

    The gradient of the sum is 2 (1 - 1 / ||w_o||) w_o: weight decay above norm 1, and growth below. The units are those
    of convolutions (also grouped and transposed ones) and linear layers, the classifier included. Their weight decay is
    0, as is that of biases and of the parameters of normalization layers, which have no Norm Loss either. The notes of
    the result have the mean, the smallest and the largest norm after the last epoch.

    Without a gradient of the label loss, SGD without momentum multiplies ||w_o|| - 1 by 1 - 2 lr lambda in each step:
    norms reach 1 within a run only if the learning rate times lambda times the number of steps is large enough.

    Args:
        run: the run; a teacher is not used. Its weight decay applies to the remaining parameters alone.
        weight: lambda. The values of the paper could not be read; 1e-4 is that of a public re-implementation, and 1e-4
            to 0.1 is a reasonable range. It multiplies a sum, not a mean.
        form: "coupled" adds the loss, as the abstract says; "decoupled" multiplies the weights before each step by
            1 - 2 lr lambda (1 - 1 / ||w_o||), outside of momentum and adaptive step sizes, as the public
            re-implementations do. With SGD without momentum they are equal up to rounding, except below norm 1e-3,
            where the decoupled form is bounded. "auto" is "coupled" for SGD and "decoupled" for other optimizers
            [inferred].

    Raises:
        TutelageError: the network has no convolution or linear layer with a trained weight of its own.

    Evidence: only the abstract and re-implementations (Ranger21, pytorch_optimizer) could be read. Which layers count,
    and that biases and normalization layers do not, is [inferred]; those codes also regularise biases and
    normalization layers, which have no weight vector for each unit, and one of them only the last parameter of each
    group, by mistake.

    Deviations: weights that are computed from other parameters, such as those of weight normalization, are left out. A
    unit whose weights are all 0 keeps them at 0, since the gradient of a norm is not defined there.
    """
    student = run.student()
    layers = regularized_layers(student.module)
    vectors = {name for name, parameter in student.module.named_parameters() if parameter.ndim <= 1}
    is_sgd = isinstance(run.recipe.optimizer, str) and run.recipe.optimizer.lower() == "sgd"
    is_coupled = form == "coupled" or (form == "auto" and is_sgd)

    def options(name: str) -> ParameterOptions | None:
        return ParameterOptions(weight_decay=0.0) if name in layers or name in vectors else None

    terms = run.label_terms()
    if is_coupled:
        terms["norm"] = weight * NormLoss(layers)
    optimizer = run.recipe.optimizer if is_coupled else decoupled(run.recipe, layers, weight)
    run.fit(Learner(student, None, terms, options=options), optimizer=optimizer)
    norms = torch.cat([unit_norms(unit_weights(layer)).detach().flatten() for layer in layers.values()])
    run.note(unit_norms={"mean": float(norms.mean()), "min": float(norms.min()), "max": float(norms.max())})
    return student
