"""Pruning of the connections between groups of units that depend little on each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import hard_labels
from tutelage.data.loader import evaluation_batches, mix_seeds
from tutelage.data.split import Split
from tutelage.data.stratified import ranks_in_strata
from tutelage.errors import TutelageError, unknown
from tutelage.evaluation.cost import parameters
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import labelled_samples
from tutelage.methods import Positive, Share, method
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.methods.mint.connections import Connection, activations, connections, remove_unread
from tutelage.methods.mint.estimate import MIN_SAMPLES, dependence
from tutelage.methods.mint.thresholds import remaining_at_most, remaining_groups
from tutelage.models.surgery import mask
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Ganesh, Corso, Sekeh 2020, arXiv 2003.08472", family="pruning", evidence="code")
def mint(
    run: Run,
    *,
    start: Literal["trained", "teacher"] = "trained",
    groups: Annotated[int, Field(ge=2, le=64)] = 20,
    per_class: Annotated[int, Field(ge=1)] = 250,
    divisions: Annotated[int, Field(ge=1)] = 1,
    share: Share = 0.6,
    target: Annotated[float, Field(gt=0, lt=1)] | None = None,
    cap: Annotated[float, Field(ge=0, lt=1)] = 0.75,
    exempt: tuple[str, ...] = (),
    criterion: Literal["information", "magnitude", "random"] = "information",
    remove: bool = False,
    retrain_epochs: Annotated[int, Field(ge=0)] | None = None,
    alpha: Share = 0.0,
    temperature: Positive = 4.0,
) -> Tapped:
    """MINT pruning: fix the weights between groups of units with little mutual information at 0, and train the rest.

    The units of each layer are divided into groups that follow each other. A group X_j of a layer reads each group Y_i
    of the layer before, and Z_i are that layer's other groups. The score of the weights by which X_j reads Y_i is the
    conditional geometric mutual information of their activations on training images,

        I[j, i] = max(0, 1 - R / m)

    with R edges that join two samples of m rows each, the second one without the dependence given Z_i, in their
    Euclidean minimum spanning tree (``tutelage.methods.mint.estimate``). All groups whose score is among the first
    ``share`` of all distinct scores are cut, but no more than ``cap`` of a layer's weights:

        W[rows of X_j, columns of Y_i] = 0

    The network is then trained again from its weights, with the cut ones fixed at 0 by the operation ``mask``. Whole
    units remain, so that the network is not faster, unless ``remove`` removes those that nothing reads. The notes hold
    the scores of each layer, the share of zeros of each layer (``layer_sparsity``) and of all parameters
    (``sparsity``), and the accuracy on the held-out split before the training (``pruned_accuracy``).

    Compare with ``criterion=magnitude`` and ``criterion=random``: the authors' released code estimates the information
    wrongly (it draws the samples of the two layers separately, misreads the edges of the tree and mixes up the nearest
    neighbours), so that its results do not say that the criterion helps. With the correct estimator it did not help in
    our experiment on Fashion-MNIST, where it was no better than random cuts: at these sizes of groups, the scores of
    the same network on two sets of images hardly agree.

    Args:
        run: the run. The first fit trains the dense network with the run's recipe, the second one trains the pruned
            one with it. The authors use SGD with momentum 0.9, weight decay 1e-4 and a rate that steps down by 0.1.
        start: "trained" starts with that first fit, without a teacher; "teacher" starts from the teacher's weights and
            requires the student to be the same network.
        groups: G, the number of groups of each layer, 5 to 50 in the authors' experiments; the default is that for
            MNIST. No more than the layer has units.
        per_class: the number of training images of each class on which activations are compared. The time is quadratic
            in their total.
        divisions: the number of random divisions into the three parts of the estimate, over which scores are averaged;
            1 in the authors' code.
        share: p, the share of all distinct scores up to which groups are cut; the authors try many [inferred default].
        target: the largest share of the network's parameters that are not cut; then the threshold is the lowest one
            that meets it, in place of ``share``. The paper searches p for such a share.
        cap: u, the largest share of a layer's weights that is cut; the authors use 0.45 for some layers of VGG-16.
        exempt: the names of layers whose weights are not cut. The authors exempt the first four convolutions and the
            last layer of VGG-16.
        criterion: "information"; "magnitude", the mean absolute weight of a group; or "random".
        remove: remove units that no layer reads any more.
        retrain_epochs: of the second fit; ``None`` for those of the recipe; 0 for no second fit.
        alpha: the weight of Hinton's loss to the dense network in the second fit; the paper has none.
        temperature: its T.

    Evidence: the authors' code for the estimator's idea, the groups, both thresholds, the activations and the training.
    How layers are found, equal scores, groups of unequal size and the division into the three parts are [inferred].

    Deviations: the estimator is correct where the code is not. Rows of all groups are the same samples, and one random
    division into parts serves all groups of a layer. Activations are those of the training split, never of another one.
    Layers that read a sum, several layers side by side or the network's input are exempt; so all weights of a residual
    network outside of its blocks are. The epoch is selected on the held-out split; the code selects it on the test
    split. The paper's p is found by a search; here it is a parameter,
    or follows from ``target``.
    """
    student = run.student()
    connected = _connections(student, run.example(student), groups, exempt)
    images = class_balanced_images(run, per_class)
    teacher = run.teacher() if start == "teacher" else None
    if teacher is None:
        run.fit(Learner(student, None, run.label_terms()))
    elif not start_from_teacher(run, student, teacher):
        raise another_network(student, teacher, "trained")
    source = Frozen(copy.deepcopy(student)) if teacher is None else run.frozen(teacher)
    generator = torch.Generator().manual_seed(mix_seeds(run.seed, 4))
    if criterion == "information":
        scores = information(student, connected, images, generator, divisions)
    elif criterion == "magnitude":
        scores = [magnitudes(student.module, connection) for connection in connected]
    else:
        scores = [torch.rand(c.keep.shape, generator=generator, dtype=torch.float64) for c in connected]
    remaining = _remaining(student, connected, scores, share, target, cap, generator)
    connected = [replace(connection, keep=keep) for connection, keep in zip(connected, remaining, strict=True)]
    pruned = copy.deepcopy(student)
    cut(pruned, run.example(pruned), connected, remove=remove)
    pruned = pruned.rewrapped()
    run.note(scores={c.child: score.clamp(min=0).tolist() for c, score in zip(connected, scores, strict=True)})
    run.note(**sparsity(pruned.module, student.module))
    if run.data.validation is not None and bool((hard_labels(run.data.validation.labels) >= 0).any()):
        run.note(pruned_accuracy=_accuracy(run, pruned, run.data.validation))
    if retrain_epochs != 0:
        learner = Learner(pruned, source if alpha else None, run.label_terms(alpha, temperature))
        run.fit(learner, epochs=retrain_epochs or run.epochs)
    return pruned


def _remaining(
    student: Tapped,
    connected: Sequence[Connection],
    scores: Sequence[Tensor],
    share: float,
    target: float | None,
    cap: float,
    generator: torch.Generator,
) -> list[Tensor]:
    """The groups that are not cut, by the share of scores or by that of all parameters.

    Raises:
        TutelageError: ``cap`` does not let so many weights be cut.
    """
    if target is None:
        return remaining_groups(scores, [connection.sizes for connection in connected], share, cap, generator)
    weights = [student.module.get_parameter(f"{connection.child}.weight").numel() for connection in connected]
    sizes = [c.sizes * (count / float(c.sizes.sum())) for c, count in zip(connected, weights, strict=True)]
    others = parameters(student) - sum(weights)
    remaining = remaining_at_most(scores, sizes, target * parameters(student) - others, cap, generator)
    if remaining is None:
        least = (others + (1 - cap) * sum(weights)) / parameters(student)
        raise TutelageError(
            f"mint cannot reduce {type(student.module).__name__} to {target:g} of its parameters: it cuts {cap:g} "
            f"(cap) of the weights of {len(connected)} layers at most, so that {least:.3g} remain; choose a larger "
            "target"
        )
    return remaining


def cut(model: Tapped, example: Tensor, connected: Sequence[Connection], *, remove: bool = False) -> None:
    """Fix the groups of weights at 0 that their ``keep`` cuts, in place; with ``remove``, first remove unread units."""
    for connection in remove_unread(model.module, example, connected) if remove else connected:
        if not bool(connection.keep.all()):
            mask.apply(model.module, example, **connection.settings())


def sparsity(network: nn.Module, dense: nn.Module) -> dict[str, Any]:
    """Shares of a pruned network's parameters that are cut, removed units included.

    Args:
        network: masked by ``cut``, from
        dense: the network before.

    Returns:
        ``layer_sparsity``, the share of the weights of each convolution and linear layer, and ``sparsity``, that of all
        parameters.
    """
    before = {name: parameter.numel() for name, parameter in dense.named_parameters()}
    after = {name: parameter.numel() for name, parameter in network.named_parameters()}
    for name, layer in network.named_modules():
        if isinstance(layer, mask.Masked):
            after[f"{name}.weight"] = int((layer.mask.expand(layer.get_parameter("weight").shape) != 0).sum())
    layers = [name for name, layer in dense.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights = {layer: f"{layer}.weight".removeprefix(".") for layer in layers}
    return {
        "layer_sparsity": {layer: 1 - after[key] / before[key] for layer, key in weights.items() if key in before},
        "sparsity": 1 - sum(after.values()) / sum(before.values()),
    }


def _connections(student: Tapped, example: Tensor, groups: int, exempt: Sequence[str]) -> list[Connection]:
    connected = connections(student.module, example, groups)
    if not connected:
        raise TutelageError(
            f"{type(student.module).__name__} has no layer that reads the units of one other layer and nothing else; "
            "use a network with convolutions or linear layers in sequence"
        )
    children = [connection.child for connection in connected]
    for layer in exempt:
        if layer not in children:
            raise unknown("layer to exempt", layer, children)
    remaining = [connection for connection in connected if connection.child not in exempt]
    if not remaining:
        raise TutelageError(f"all layers that can be cut are exempt: {', '.join(exempt)}; exempt fewer")
    return remaining


def class_balanced_images(run: Run, per_class: int) -> Split:
    """Training images, as many of each class; if none has a label, as many at random."""
    labels = hard_labels(run.data.train.labels)
    generator = np.random.default_rng([run.seed, *b"mint"])
    if bool((labels >= 0).any()):
        ranks = torch.from_numpy(ranks_in_strata(labels.cpu().numpy(), generator))
        chosen = ((ranks < per_class) & (labels >= 0).cpu()).nonzero().squeeze(1)
    else:
        chosen = torch.from_numpy(generator.permutation(len(labels))[: per_class * run.data.num_classes])
    if len(chosen) < MIN_SAMPLES:
        raise TutelageError(
            f"mint compares activations of at least {MIN_SAMPLES} images, and per_class={per_class} gives {len(chosen)}"
            " of the training split; set a larger per_class, or use more data"
        )
    return run.data.train.subset(chosen)


def information(
    model: Tapped,
    connected: Sequence[Connection],
    images: Split,
    generator: torch.Generator,
    divisions: int = 1,
) -> list[Tensor]:
    """The estimated mutual information of each group of each connection, (outputs, inputs) float64."""
    values = activations(model.module, connected, _batches(model, images))
    return [
        torch.stack([dependence(values[c.child], values[c.parent], generator) for _ in range(divisions)]).mean(0)
        for c in connected
    ]


def magnitudes(network: nn.Module, connection: Connection) -> Tensor:
    """The mean absolute weight of each group."""
    weight = network.get_parameter(f"{connection.child}.weight").detach().abs().cpu().double()
    rows = torch.split(weight.reshape(*weight.shape[:2], -1).mean(2), list(connection.outputs))
    columns = [size * connection.positions for size in connection.inputs]
    return torch.stack([torch.stack([part.mean() for part in torch.split(row, columns, 1)]) for row in rows])


def _batches(model: Tapped, images: Split) -> Iterator[Tensor]:
    for batch in evaluation_batches(images, batch_size=256, workers=0):
        yield model.normalised(batch.inputs.to(model.mean.device))


def _accuracy(run: Run, model: Tapped, split: Split) -> float:
    labelled = labelled_samples(split)
    return float(accuracy(run.predict(model, labelled), labelled.labels))
