"""Feature fusion for online mutual knowledge distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.errors import TutelageError
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import labelled_samples
from tutelage.methods import NonNegative, Positive, method
from tutelage.methods._branches import branched_student
from tutelage.methods.ffl.surgery import beside
from tutelage.methods.ffl.surgery.beside import Beside
from tutelage.models.surgery.branch import Branched
from tutelage.models.surgery.heads import apply as attach_head
from tutelage.models.tapped import Tapped
from tutelage.sources import OwnOutputs
from tutelage.terms import CrossEntropy, OnRole, SoftTargets, Term, Weighted
from tutelage.terms.term import Weight
from tutelage.training.learner import Learner
from tutelage.training.optim import ParameterOptions
from tutelage.training.ramp import sigmoid_ramp_up
from tutelage.training.run import Run

FUSION_DECAY = 0.1  # weight decay of the fusion relative to the sub-networks: 1e-5 and 1e-4 in the authors' code


@method(paper="Kim, Hyun, Chung, Kwak 2020, arXiv 1904.09058", family="online", evidence="code")
def ffl(
    run: Run,
    *,
    branches: Annotated[int, Field(ge=2, le=64)] = 2,
    others: Annotated[tuple[str, ...], Field(max_length=63)] = (),
    temperature: Positive = 3.0,
    weight: NonNegative = 1.0,
    ramp: Annotated[float, Field(ge=0, le=1)] = 80 / 300,
    deploy: Literal["branch", "fused"] = "branch",
) -> Tapped:
    """Feature fusion learning (FFL): sub-networks and a classifier of their fused feature maps teach each other.

        L = sum_k CE(z_k, y) + CE(z_f, y) + w(e) T^2 [KL(q_e || q_f) + sum_k KL(q_f || q_k)]

    z_k are the logits of sub-network k, z_e = 1/K sum_k z_k those of the ensemble, and z_f those of the fusion, with
    q = softmax(z / T). The fusion concatenates the sub-networks' last feature maps: depthwise 3x3 and 1x1 convolution,
    each with batch normalisation and ReLU, mean, linear layer. The targets q_e and q_f are detached: the ensemble
    teaches the fusion, and the fusion teaches each sub-network. The feature maps are not: CE(z_f, y) and KL(q_e || q_f)
    train the sub-networks, up to their last feature map, as well. w(e) = weight exp(-5 (1 - e / (ramp E))^2), then
    ``weight``.

    By default the sub-networks are branches of the student, with the last stage and the classifier of their own;
    everything before is shared. With ``others``, they are the student and these networks, which share nothing. The
    student starts from the weights of the plain student of the same seed.

    Args:
        run: the run; a teacher is not used. The authors train for 300 epochs with batches of 128, Nesterov momentum
            and weight decay 1e-4, and lower the rate of 0.1 to a tenth after 150 and 225 epochs.
        branches: K, without ``others``.
        others: names of built-in networks, for sub-networks of different architectures: ``others=[wrn-16-1]``.
        temperature: T.
        weight: the final weight of the divergences, 1 in the authors' code; 0 trains fusion and sub-networks on labels
            alone.
        ramp: the share of the run over which w rises; 80 of 300 epochs in the authors' code.
        deploy: "branch" returns the student, without a fusion; "fused" returns all sub-networks with the fusion.

    Raises:
        TutelageError: a sub-network has no feature map to fuse.

    ``result.json`` records the accuracy of each sub-network, of the ensemble and of the fusion on the held-out split.
    The weight decay of the fusion is a tenth of that of the sub-networks.

    Evidence: the authors' code for equal architectures. That a larger map is reduced by a convolution [from memory],
    which has as many channels as the map and the kernel and stride that give the smallest map's size [inferred].

    Deviations: w changes with every step instead of every epoch. The divergence is exact (the authors add 1e-7 to the
    target). A wide ResNet's last map is read before its last batch normalisation.
    """
    parts, student, network, layers = _sub_networks(run, branches, others)
    example = run.example(student)
    fused = attach_head(network, example, kind="fusion", layers=layers)
    whole = Tapped(
        fused,
        student.mean.flatten().tolist(),
        student.std.flatten().tolist(),
        roles={name: f"network.branches.{number}" for number, name in enumerate(parts)} | {"ensemble": "network"},
    )

    def ramp_up(progress: float) -> float:
        return weight * sigmoid_ramp_up(progress, ramp)

    divergence: Weight = ramp_up if weight else 0.0
    terms: dict[str, Term | Weighted] = {"ce fused": CrossEntropy()}
    terms |= {f"ce {name}": OnRole(name, CrossEntropy()) for name in parts}
    terms["kd fused"] = divergence * OnRole("logits", SoftTargets(temperature), teacher_role="ensemble")
    terms |= {f"kd {name}": divergence * OnRole(name, SoftTargets(temperature)) for name in parts}
    deployed = student if deploy == "branch" else whole
    fusion_options = ParameterOptions(weight_decay=FUSION_DECAY * run.recipe.weight_decay)
    learner = Learner(
        whole,
        OwnOutputs(whole),
        terms,
        deployed=deployed,
        options=lambda name: fusion_options if name.startswith("head.") else None,
    )
    run.fit(learner)
    _note_accuracies(run, whole, parts)
    if deploy == "branch":
        fused.release()
        network.release()
    return deployed


def _sub_networks(
    run: Run, branches: int, others: tuple[str, ...]
) -> tuple[list[str], Tapped, Branched | Beside, list[str]]:
    """The names of the sub-networks, the student, the network of all of them, and the layers of their last maps."""
    network: Branched | Beside
    if others:
        student = run.trace(run.student())
        further = [run.network(name, number) for number, name in enumerate(others, 1)]
        traced = [student, *map(run.trace, further)]
        network = beside.apply(
            student.module, run.example(student), networks=others, others=[model.module for model in further]
        )
    else:
        student, network = branched_student(run, "FFL", branches, combine="mean")
        traced = [student] * branches
    for model in traced:
        if not model.stages:
            raise TutelageError(
                f"FFL fuses the last feature maps, and {type(model.module).__name__} has none; name its layer, for "
                'example roles={"stage1": "layer1"}'
            )
    layers = []
    for number, model in enumerate(traced):
        tap = model.taps[model.stages[-1]]
        layers.append(f"{'input:' * tap.of_input}branches.{number}.{tap.layer}")
    return [f"branch{number}" for number in range(len(traced))], student, network, layers


def _note_accuracies(run: Run, whole: Tapped, parts: list[str]) -> None:
    """Record the accuracies on the held-out split, if there is one."""
    if run.data.validation is None or not bool(run.data.targets.labelled(run.data.validation.labels).any()):
        return
    validation = labelled_samples(run.data.validation)
    roles = (*parts, "ensemble", "logits")
    predictions = run.predict(whole, validation, roles).chunk(len(roles), 1)
    names = (*parts, "ensemble", "fused")
    run.note(
        validation={
            name: float(accuracy(logits, validation.labels)) for name, logits in zip(names, predictions, strict=True)
        }
    )
