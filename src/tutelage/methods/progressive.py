"""Progressive stepwise training: several fits on growing subsets, with a batch size and a learning rate for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from tutelage.config import Recipe
from tutelage.data.conditions.condition import stream
from tutelage.data.loader import mix_seeds
from tutelage.data.stratified import nested_order
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.training.fit import FitResult
from tutelage.training.learner import Learner
from tutelage.training.loop import Record
from tutelage.training.run import Run

Growth = Literal["linear", "geometric"]
BatchRule = Literal["proportional", "constant"]
RateRule = Literal["restart", "linear", "noise"]


@method(paper="Prasad, Lin, Li, Dong, Oo 2020, ICPR", family="data schedule", task=None, evidence="abstract")
def progressive(
    run: Run,
    *,
    stages: Annotated[int, Field(ge=1, le=20)] = 4,
    growth: Growth = "linear",
    batch: BatchRule = "proportional",
    rate: RateRule = "restart",
    noise_factor: Positive = 1.0,
    patience: Annotated[int, Field(ge=1)] | None = None,
    keep_momentum: bool = False,
    anneal: Share = 0.0,
    shrink: Share = 1.0,
    perturb: NonNegative = 0.01,
) -> Tapped:
    """Progressive stepwise training: begin with a part of the training set and enlarge it in stages, without decay.

        share of the data in stage s of S:  r_s = s / S (linear) or 2^(s - S) (geometric)
        batch size:                         B_s = B r_s, rounded, at least 2; B is that of the recipe
        learning rate (restart):            the recipe's, constant, in every stage

    The subsets are stratified and nested, and depend on the seed alone. The run's epochs are divided evenly among the
    stages. With four stages of linear growth the network processes 0.625 times as many samples as in ordinary training
    of the same epochs (geometric: 0.469), in about as many steps. Weights and running statistics carry over.

    Args:
        run: the run; a teacher is not used. The recipe's schedule is not used.
        stages: S, at most the epochs of the run; with 1, ordinary training with a constant learning rate.
        growth: of the shares [inferred].
        batch: "constant" has the recipe's batch size in every stage, and thus fewer steps per epoch in early ones.
        rate: "restart", or "linear": the recipe's rate times B_s / B, with a warm-up of one epoch in each stage; or
            "noise": the rate at which the noise scale rate x samples / batch size of stage s is that of the recipe,
            times noise_factor^(s - 1) [all inferred]. With proportional batches and a factor of 1, this is "restart".
        noise_factor: for "noise"; below 1 the noise falls from stage to stage.
        patience: end a stage before its last epoch if the training loss was not the lowest so far in the last so many
            epochs; later stages do not become longer. ``None`` never does [inferred].
        keep_momentum: keep SGD's momentum from stage to stage; by default each stage begins without. Adam's moments are
            always kept [inferred].
        anneal: the share of the last stage's epochs at its end in which the rate falls to 0 by a cosine. With 0 it
            never falls, as in the paper.
        shrink, perturb: after each stage but the last, w <- shrink w + e with e from N(0, perturb^2), for all trainable
            parameters, unless shrink is 1 (Ash and Adams 2020 [from memory]): training on a small subset first can
            reduce the final accuracy.

    Evidence: the abstract names the growing data set, the learning rate and batch size that are set anew in each step
    in place of a decay, and the aims (higher accuracy for less computation). Neither text nor code could be read; all
    numbers and rules are [inferred].

    Deviations: as in every fit, a last batch smaller than the others is left out, so an epoch of stage s processes
    floor(n_s / B_s) B_s samples.
    """
    plan = schedule(
        len(run.data.train),
        run.recipe,
        shares(min(stages, run.epochs), growth),
        batch=batch,
        rate=rate,
        noise_factor=noise_factor,
        anneal=anneal,
        multiple=run.processes.world,
    )
    student, train = run.student(), run.data.train
    strata = train.targets.strata(train.labels).cpu().numpy()
    order = torch.from_numpy(nested_order(strata, stream("progressive", run.seed)))
    terms = run.label_terms()
    learner, (loss,) = Learner(student, None, terms), terms
    fitted: FitResult | None = None
    for number, stage in enumerate(plan):
        optimizers: Mapping[str, Any] = {} if fitted is None else fitted.optimizers
        if number and not stage.continues:
            if not keep_momentum:
                optimizers = {name: without_momentum(state) for name, state in optimizers.items()}
            if shrink < 1:
                shrink_and_perturb(learner, shrink, perturb, mix_seeds(run.seed, 6, number))
        fitted = run.fit(
            learner,
            data=replace(run.data, train=train.subset(order[: stage.samples].sort().values)),
            until=None if patience is None else partial(is_plateau, loss=loss, patience=patience),
            optimizers=optimizers,
            **stage.changes,
        )
    run.note(stages=[asdict(stage) for stage in plan])
    return student


@dataclass(frozen=True, slots=True)
class Stage:
    """A fit on a subset.

    Attributes:
        samples: of the subset.
        epochs, batch_size, lr, warmup, schedule: as in ``Recipe``.
        continues: whether the subset is that of the stage before, whose optimizer state is kept.
    """

    samples: int
    epochs: int
    batch_size: int
    lr: float
    warmup: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    continues: bool = False

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of the recipe that differ in this stage."""
        names = ("epochs", "batch_size", "lr", "warmup", "schedule")
        return {name: getattr(self, name) for name in names}


def shares(stages: int, growth: Growth) -> list[float]:
    """The share of the training set in each stage, increasing to 1."""
    if growth == "linear":
        return [number / stages for number in range(1, stages + 1)]
    return [2.0 ** (number - stages) for number in range(1, stages + 1)]


def schedule(
    samples: int,
    recipe: Recipe,
    parts: Sequence[float],
    *,
    batch: BatchRule = "proportional",
    rate: RateRule = "restart",
    noise_factor: float = 1.0,
    anneal: float = 0.0,
    multiple: int = 1,
) -> list[Stage]:
    """The stages: subset sizes, epochs, batch sizes and learning rates.

    Args:
        samples: N, of the whole training split.
        recipe: has the epochs of all stages together, and the batch size and learning rate for the whole split.
        parts: the share of the split in each stage; at most as many as epochs.
        batch, rate, noise_factor, anneal: see ``progressive``.
        multiple: batch sizes are rounded to a multiple of this number.
    """
    ends = [round(recipe.epochs * number / len(parts)) for number in range(len(parts) + 1)]
    plan = []
    for number, part in enumerate(parts):
        size = max(1, round(part * samples))
        batch_size = recipe.batch_size
        if batch == "proportional":
            batch_size = min(batch_size, max(2, round(part * batch_size / multiple)) * multiple)
        lr = {
            "restart": recipe.lr,
            "linear": recipe.lr * batch_size / recipe.batch_size,
            "noise": recipe.lr * samples / recipe.batch_size * noise_factor**number * batch_size / size,
        }[rate]
        warmup = 1.0 if rate == "linear" else 0.0 if number else recipe.warmup
        plan.append(Stage(size, ends[number + 1] - ends[number], batch_size, lr, warmup))
    last = plan[-1]
    if annealed := round(anneal * last.epochs):
        falling = replace(last, epochs=annealed, schedule="cosine")
        before = [replace(last, epochs=last.epochs - annealed)] if annealed < last.epochs else []
        plan[-1:] = [*before, replace(falling, warmup=0.0, continues=True) if before else falling]
    return plan


def is_plateau(history: Sequence[Record], loss: str, patience: int) -> bool:
    """Whether the training loss of that name was not the lowest so far in the last ``patience`` epochs."""
    losses = [record["learners"]["student"][loss] for record in history]
    return len(losses) - 1 - losses.index(min(losses)) >= patience


def without_momentum(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer with all momentum buffers of SGD set to 0."""
    parameters = {
        number: {
            name: torch.zeros_like(value) if name == "momentum_buffer" and value is not None else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": parameters}


@torch.no_grad()
def shrink_and_perturb(learner: Learner, shrink: float, perturb: float, seed: int) -> None:
    """w <- shrink w + e, e from N(0, perturb^2), for all trained parameters of a learner."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in learner.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.mul_(shrink).add_(noise.to(parameter), alpha=perturb)
