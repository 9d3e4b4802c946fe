"""Fast saliency under a heavy teacher."""

from __future__ import annotations

from typing import Any, Literal

from tutelage.errors import TutelageError
from tutelage.methods import Share, method
from tutelage.methods.fastsal.density import TeacherOutput, density_terms
from tutelage.methods.fastsal.hints import DECODER, LEVELS, LevelHints
from tutelage.models.tapped import Tapped
from tutelage.terms import Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.optim import ParameterOptions
from tutelage.training.run import Run
from tutelage.training.selection import Selected

DROPS = (0.15, 0.3, 0.6)
"""The shares of a stage after which the learning rate is multiplied by 0.1: epochs 15, 30 and 60 of 100."""


@method(paper="Hu, McGuinness 2020, arXiv 2008.11151", family="saliency", task="saliency", evidence="code")
def fastsal(
    run: Run,
    *,
    loss: Literal["maps", "density"] = "maps",
    teacher_output: TeacherOutput = "map",
    hint_share: Share = 0.5,
    schedule: Literal["paper", "recipe"] = "paper",
) -> Tapped:
    """FastSal: a small encoder learns a heavy teacher's features, then the network people's and the teacher's maps.

    Stage 1 reads no labels. With e_k the four levels of the student's encoder, t_k the activations of the teacher's
    decoder after the last ReLU of each block, and r_k a 1x1 convolution and a ReLU:

        L = sum over k of MSE(r_k(e_k), t_k)

    The adapters r_k are discarded; only the encoder has been trained. Stage 2 trains the whole network. With z the
    student's logits, v the teacher's, s the logistic function and y the density of fixations in [0, 1]:

        L = BCE(s(z), y) + BCE(s(z), s(v))                                          loss=maps
        L = 0.5 KL(g || softmax(z)) + 0.3 BCE(s(z), scaled g) + 0.2 (1 - cos(softmax(z), g))   loss=density

    BCE is a mean over pixels; y is left out for images without labels. g is the teacher's density over pixels, of sum
    1, and scaled g runs from 0 to 1. KL is summed over pixels and the softmax runs over them; all are averaged over the
    batch. The cosine is that of the vectors, not the centred correlation. loss=density reads no labels.

    Weights of the encoder have half the learning rate, biases of all other layers twice; biases have no weight decay.
    The learning rate is multiplied by 0.1 after 15, 30 and 60 % of a stage; in stage 2, the best weights on the
    held-out split so far are loaded each time. The student and its teacher see the same images, each with its own
    normalisation.

    Args:
        run: the run. Its epochs are those of both stages together; the official code has 100 for each, SGD with
            momentum 0.9, a learning rate of 0.01, weight decay 5e-4 and a batch of 30.
        loss: "maps" also learns from images without labels, by the teacher's map alone; "density" learns from the
            teacher alone, as the paper does on COCO.
        teacher_output: for loss=density, what the teacher's logits v are: "map" takes g proportional to s(v), for
            teachers trained on maps; "log_density" to exp(v), as of DeepGaze II, the paper's teacher for this loss.
        hint_share: the share of the epochs that stage 1 takes; with 0 there is none. Stage 2 has one epoch at least.
        schedule: "paper", as above; or "recipe", the run's schedule for each stage, without loading the best weights.

    Deviations: the encoder starts from the run's initial weights (``--init``), not from ImageNet. The paper's first
    stage trains its network of type C; here also one of type A, whose encoder is the same. In stage 1 the last weights
    are used, not the best ones on the held-out split, and the adapters have the recipe's learning rate and weight decay
    for all their parameters. Each segment of the schedule starts with an empty momentum. The teacher runs in each step
    unless its outputs are cached; the paper stores DeepGaze's. BCE with the teacher's map is computed as a divergence,
    which differs by a constant. The minimum and the maximum of scaled g are those of each image [inferred].
    """
    student, teacher = run.student(), run.teacher()
    source = run.frozen(teacher)
    hint_epochs = min(round(hint_share * run.epochs), run.epochs - 1)
    if hint_epochs:
        for who, model, roles in (("student", student, LEVELS), ("teacher", teacher, DECODER)):
            if missing := [role for role in roles if role not in run.trace(model).taps]:
                raise TutelageError(
                    f"the {who}, {type(model.module).__name__}, has no {', '.join(missing)} for FastSal's hints; take "
                    f"{'fastsal-a or fastsal-c' if who == 'student' else 'salgan'}, name layers with roles={{...}}, or "
                    "leave out the first stage with hint_share=0"
                )

    def second_stage() -> Learner:
        terms: dict[str, Term | Weighted] = (
            run.label_terms() | {"teacher": run.label_task.soft_targets(1.0)}
            if loss == "maps"
            else density_terms(teacher_output)
        )
        return Learner(student, source, terms, options=options)

    run.check(second_stage())
    if hint_epochs:
        changes: dict[str, Any] = {"schedule": "step", "milestones": DROPS, "gamma": 0.1} if schedule == "paper" else {}
        hints = Learner(student, source, {"hints": LevelHints()}, options=options)
        run.fit(hints, epochs=hint_epochs, **changes)
    epochs = run.epochs - hint_epochs
    if schedule == "recipe":
        run.fit(second_stage(), epochs=epochs)
        return student
    best: Selected | None = None
    for number, (start, end) in enumerate(segments(epochs)):
        if best is not None:
            student.module.load_state_dict(best.state)
        run.fit(
            second_stage(),
            epochs=end - start,
            lr=run.recipe.lr * rate(start, epochs),
            schedule="constant",
            warmup=0 if number else run.recipe.warmup,
        )
        reached = run.selected.get(student)
        if reached is not None and (best is None or run.task.improves(reached.score, best.score)):
            best = reached
    return student


def options(name: str) -> ParameterOptions:
    """The optimizer's options for a parameter of the student."""
    encoder, bias = name.startswith("encoder."), name.endswith("bias")
    factor = (0.5 if encoder else 1.0) * (2.0 if bias else 1.0)
    return ParameterOptions(lr=factor, weight_decay=0.0 if bias else None)


def segments(epochs: int) -> list[tuple[int, int]]:
    """The first epoch and the end of each part of a stage with one learning rate; parts without an epoch are left out.

    Counted from 0: (0, 15), (15, 30), (30, 60), (60, 100) of 100 epochs.
    """
    ends = [round(share * epochs) for share in (*DROPS, 1.0)]
    return [(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]


def rate(epoch: int, epochs: int) -> float:
    """The factor of the learning rate from this epoch of a stage on: 0.1 for each drop so far."""
    return 0.1 ** sum(epoch >= round(share * epochs) for share in DROPS)
