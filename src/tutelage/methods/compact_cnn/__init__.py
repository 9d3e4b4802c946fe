"""Learned numbers of channels under a budget of operations or parameters, with distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods.compact_cnn.control import Shrinkage
from tutelage.methods.compact_cnn.partition import Partition, layer_blocks
from tutelage.methods.compact_cnn.resources import Resource, Resources, resources_of
from tutelage.methods.compact_cnn.shrinkage import ResourceLoss
from tutelage.methods.compact_cnn.steps import (
    check_blocks,
    dense_network,
    example_images,
    extracted,
    extraction_difference,
    norm_parameters,
    targets,
)
from tutelage.methods.compact_cnn.widths import meet, widened
from tutelage.models.groups import MIN_UNITS
from tutelage.models.surgery.resize import layer_sizes
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.optim import ParameterOptions
from tutelage.training.run import Run


@method(paper="Ahmed, Zunino, Morerio, Murino 2021, arXiv 2104.09191", family="pruning", evidence="abstract")
def compact_cnn(
    run: Run,
    *,
    resource: Resource = "flops",
    target: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    partition: Partition = "stages",
    multipliers: tuple[NonNegative, ...] = (),
    block_targets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (),
    strength: Positive = 1.0,
    rate: NonNegative = 0.3,
    step: Literal["proximal", "gradient"] = "proximal",
    threshold: NonNegative = 0.01,
    tolerance: Share = 0.05,
    structure_epochs: Annotated[int, Field(ge=1)] | None = None,
    expand_from: Annotated[float, Field(gt=0, lt=1)] | None = None,
    start: Literal["trained", "teacher"] = "trained",
    finish: Literal["scratch", "finetune"] = "scratch",
    alpha: Share = 0.7,
    temperature: Positive = 4.0,
    floor: Annotated[int, Field(ge=MIN_UNITS)] = MIN_UNITS,
) -> Tapped:
    """Compact CNN: learn the number of channels of each layer under a budget, distilling the whole network.

        L = (1 - alpha) label loss + alpha T^2 KL(teacher || student) + sum over blocks b of lambda_b R_b / C
        R_b = sum over layers l of b of k_l (a_out sum of u_i over inputs + a_in sum of u_i over outputs)

    u_i is the largest |gamma| of the batch normalisations that unit i passes, k_l the cost of a pair of an input and an
    output of layer l, a_in and a_out the numbers of its inputs and outputs that remain (without gradient), and C the
    cost of the whole network. So a unit's weight is what its removal saves. Units that a sum or a depthwise convolution
    couples are one unit. With ``step="proximal"`` the regulariser acts by the proximal operator after each update,
    which is exact at 0, and not by its gradient.

    1. The dense network is trained (``start="trained"``) or is the teacher; it is the teacher of both next steps.
    2. Structure: a copy of it is trained by L at a constant learning rate. A unit whose u_i falls to ``threshold`` is
       switched off, at most one of a layer in each step: its scales and biases are set to 0, so that removing it
       changes nothing, not even the constant that its bias added. After each epoch

           lambda_b <- lambda_b exp(rate (cost / target - 1))

       with the cost of the block if there are ``block_targets``, or else that of the network. It ends when the cost is
       within ``tolerance`` of the target.
       If its epochs do not suffice, a larger ``strength`` or more epochs help; ``cost`` in the notes shows it.
    3. Then the units of the smallest u_i are removed, or the last ones that were switched off are added, so that the
       cost is at most the target and close to it. The network of these widths is trained by L without the regulariser.

    Weight decay does not act on batch normalisations in step 2. Units that no batch normalisation scales, or that do
    not reach the next layers through separate channels, remain; ``uncompressed`` in the notes lists the layers that
    have only such units. The notes also have the widths of the layers before and after (``widths``), the cost of the
    network and its blocks (``cost``, ``block_cost``), the largest difference of a logit by the removal of units that
    are switched off (``extraction_difference``), and costs and lambda_b of each epoch (``structure``).

    Args:
        run: the run. Its recipe is that of steps 1 and 3.
        resource: what is limited: "flops" of one input, with 2 for a multiply-add, or "parameters".
        target: the largest cost, as a share of that of the dense network.
        partition: the blocks: "stages" are the roles of the same name, "blocks" residual blocks and single layers.
        multipliers: lambda_b relative to ``strength``, one for each block; empty for 1.
        block_targets: the largest cost of each block as a share of its own, in place of ``target``.
        strength: the initial lambda; 0.1 to 10 is a reasonable range. A scale falls by about learning rate x lambda x 2
            / number of units in a step, so that trainings of few steps need a larger one.
        rate: eta of the control; 0 for constant weights.
        step: the proximal step, or the gradient of L.
        threshold: for u_i [code of MorphNet].
        tolerance: step 2 ends at this relative excess of the cost.
        structure_epochs: the maximum of step 2; ``None`` for the epochs of the run.
        expand_from: the share of the cost at which step 2 ends instead; the widths are then multiplied by one factor,
            up to those of the dense network, to meet ``target`` (the expansion of MorphNet, once).
        start: the dense network: "trained" is a first fit on the label loss, "teacher" the run's teacher.
        finish: "scratch" trains new weights, those of the remaining units of a new network; "finetune" the remaining.
        alpha: alpha; with 0 the label loss alone is used in steps 2 and 3.
        temperature: T.
        floor: the smallest number of units of a layer.

    Evidence: only the abstract could be read: block-wise weights of a resource regulariser, and distillation in both
    steps. The regulariser is that of the public code of MorphNet (Gordon et al. 2018); that the paper uses it is
    [inferred], as are the control of lambda_b, alpha, T and that the last step starts from new weights.

    Deviations: MorphNet counts the channels of a depthwise convolution twice and no biases; here R is the exact
    derivative of the cost. A unit that is switched off stays so, one of a layer at a time, and the loss is 0 while the
    cost is at most its target; a block that is at its target is in no other block's loss either. This keeps costs from
    falling far below their targets. Step 2 saves no average of weights. A whole residual branch is not
    removed, and no layer grows beyond the dense network.
    """
    student = run.student()
    images = example_images(run, student)
    blocks = layer_blocks(run.trace(student), images, partition)
    resources = resources_of(student.module, images, blocks, resource)
    goal, block_goals = targets(resources, target, block_targets, floor, type(student.module).__name__)
    if multipliers:
        check_blocks("multipliers", multipliers, resources)
    whole = resources.total(resources.units)
    if expand_from is not None and (block_targets or expand_from * whole >= goal):
        raise TutelageError(
            f"expand_from={expand_from:g} is the share before the widths grow to target={target:g}, so it must be "
            "smaller, and it goes with no block_targets; choose a smaller one, or leave it out"
        )
    layers = {name: layer_sizes(student.module.get_submodule(name))[1] for name in blocks}
    dense = dense_network(run, student, start)
    source = run.frozen(dense) if start == "teacher" else Frozen(dense)
    loss = ResourceLoss(
        student.module,
        resources,
        [strength * multiplier for multiplier in multipliers or [1.0] * len(resources.blocks)],
        goal if expand_from is None else int(expand_from * whole),
        block_goals,
        threshold=threshold,
        floor=floor,
        proximal=step == "proximal",
    )
    rule = Shrinkage(loss, rate, tolerance, run.recipe.accumulate)
    terms: dict[str, Term | Weighted] = {**run.label_terms(alpha, temperature), "resource": loss}
    norms = norm_parameters(student)
    fitted = run.fit(
        Learner(
            student,
            source,
            terms,
            options=lambda name: ParameterOptions(weight_decay=0.0) if name in norms else None,
        ),
        update=rule,
        until=rule.after_epoch,
        epochs=structure_epochs or run.epochs,
        schedule="constant",
        warmup=0.0,
        ema=None,
    )
    if len(rule.history) < len(fitted.history):  # the fit does not ask for an end after the last epoch
        rule.after_epoch(fitted.history)
    counts, importance = loss.counts(), loss.importance()
    alive = [values >= 0 for values in importance]
    widths = counts if expand_from is None else widened(resources, counts, goal, floor)
    remaining = meet(resources, importance, widths, goal, floor)
    difference = extraction_difference(student, resources, alive, images)
    compact = extracted(run, student, resources, alive, remaining, scratch=finish == "scratch")
    run.note(
        widths={name: [size, layer_sizes(compact.module.get_submodule(name))[1]] for name, size in layers.items()},
        uncompressed=[name for name in layers if not any(name in group.layers for group in resources.groups)],
        extraction_difference=difference,
        structure=rule.history,
        **costs(resources, counts, remaining, goal),
    )
    run.fit(Learner(compact, source, run.label_terms(alpha, temperature)))
    return compact


def costs(resources: Resources, counts: Sequence[int], remaining: Sequence[Tensor], goal: int) -> dict[str, object]:
    """The cost of the network and its blocks, as notes of the result.

    Args:
        resources: of the network.
        counts: the number of units of each group at the end of the structure phase.
        remaining: the units of the compact network, (units,) bool by group.
        goal: the largest cost.
    """
    final = [int(mask.sum()) for mask in remaining]
    pairs = zip(resources.by_block(resources.units), resources.by_block(final), strict=True)
    return {
        "cost": {
            "resource": resources.resource,
            "dense": resources.total(resources.units),
            "target": goal,
            "structure": resources.total(counts),
            "compact": resources.total(final),
        },
        "block_cost": {name: [before, after] for name, (before, after) in zip(resources.blocks, pairs, strict=True)},
    }
