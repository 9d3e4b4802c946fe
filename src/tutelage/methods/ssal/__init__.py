"""Auxiliary classifiers whose classes are groups of similar classes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.config import Numbers
from tutelage.data.batch import hard_labels
from tutelage.data.loader import mix_seeds
from tutelage.data.stratified import check_folds, stratified_folds
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, method
from tutelage.methods.ssal.group_labels import GroupCrossEntropy
from tutelage.methods.ssal.grouping import class_groups, confusion_matrix, random_groups
from tutelage.models.surgery.heads import Headed
from tutelage.models.surgery.heads import apply as attach_head
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, OnRole, Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run

Grouping = Literal["similar", "split", "random", "identity"]


@method(paper="Palacio, Engler, Hees, Dengel 2020, ICPR", family="auxiliary tasks", evidence="code")
def ssal(
    run: Run,
    *,
    groups: Numbers = (0.2, 0.33, 0.5),
    weights: Numbers = (0.42, 0.59, 0.76),
    gamma: NonNegative = 0.3,
    grouping: Grouping = "similar",
    folds: Annotated[int, Field(ge=2)] = 2,
    width: Annotated[int, Field(ge=1, le=4096)] = 128,
    deploy: Literal["joint", "network"] = "joint",
) -> Tapped:
    """Self-supervised autogenous learning (SSAL): auxiliary classifiers predict groups of classes.

        L = CE(z, y) + sum_b w_b CE(a_b, g_b(y))

    z are the student's logits and a_b those of a branch on its b-th stage, which predicts the group g_b(y) of the
    class: coarse groups on early stages, finer ones on later stages. The gradient of the branches reaches the student.
    The groups follow from the confusion matrix of the plain student (``class_groups``): classes that it confuses share
    a group. The joint prediction multiplies all outputs,

        p_k proportional to softmax(z)_k prod_b softmax(a_b)_{g_b(k)}^gamma.

    1. For each of ``folds`` stratified folds of the training set, a student is trained on the others with
       cross-entropy and predicts this one. The predictions for all samples, without augmentation, give the matrix.
    2. The student is trained from its initial weights with the branches on the first stages, one for each number of
       groups. A student with fewer stages has the last of these branches.

    Args:
        run: the run; a teacher is not used. The authors train ResNet-50 for 80 epochs with batches of 64, a rate that
            rises to 0.092 until epoch 10 and then falls, momentum 0.93 and weight decay 1e-4.
        groups: the number of groups of each branch as a share of the number of classes, rounded, at least 2: 20, 33
            and 50 groups of 100 classes.
        weights: w_b; 0.8, 0.9, 1 for the authors' WRN-28-10 and DenseNet-190-40.
        gamma: the weight of the branches in the joint prediction; 0.4 and 0.5 for these networks.
        grouping: "similar"; "split", which separates the classes that are confused; "random" groups; or "identity", in
            which each class is a group and the branches are ordinary auxiliary classifiers. The last two are controls
            without step 1.
        folds: the number of folds of step 1.
        width: channels of the branches' convolutions.
        deploy: "joint" returns the student with its branches and the joint prediction; "network" returns the student
            alone, which has the same weights and cost as a plain one.

    Raises:
        TutelageError: the numbers of ``groups`` and ``weights`` differ, or the student has no feature map.

    ``result.json`` records the group of each class in each branch, and the accuracy of step 1.

    Evidence: the authors' code. Which predictions give the confusion matrix is not stated; predictions for training
    samples of a fitted network would hardly be wrong [inferred]. So are the widths of the last block of a branch.

    Deviations: the branches of all networks have the form of those of the authors' ResNet-50 for CIFAR-100.
    """
    if len(groups) != len(weights) or not groups or min(groups) <= 0 or max(groups) > 1:
        raise TutelageError(
            f"ssal needs one weight for each number of groups, and shares of the classes in (0, 1], got groups {groups}"
            f" and weights {weights}"
        )
    student = run.trace(run.student())
    if not student.stages:
        raise TutelageError(
            f"ssal reads feature maps, and {type(student.module).__name__} has none; name their layers, for example "
            'roles={"stage1": "layer1"}'
        )
    stages = student.stages[: len(groups)]
    classes = run.data.num_classes
    counts = [min(classes, max(2, round(share * classes))) for share in groups[-len(stages) :]]
    table = group_table(run, grouping, counts, folds)
    run.note(groups=table.tolist())
    whole, network = with_branches(run, student, table, gamma=gamma, width=width)
    terms: dict[str, Term | Weighted] = {"ce": OnRole("network", CrossEntropy())}
    for number, weight in enumerate(weights[-len(stages) :]):
        terms[f"groups {number + 1}"] = weight * GroupCrossEntropy(f"branch{number + 1}", table[number])
    deployed = whole if deploy == "joint" else student
    run.fit(Learner(whole, None, terms, deployed=deployed, evaluated=True))
    if deploy == "network":
        network.release()
    return deployed


def with_branches(run: Run, student: Tapped, table: Tensor, *, gamma: float, width: int) -> tuple[Tapped, Headed]:
    """The student with branches on its first stages and the joint prediction as its logits, and the bare network.

    The roles are ``network``, the student's own logits, and ``branch1``, ``branch2``, ... Row b of the table (branches,
    K) holds the group of each class in branch b.
    """
    layers = [str(student.taps[stage]) for stage in student.stages[: len(table)]]
    settings = {"groups": table.flatten().tolist(), "gamma": gamma, "width": width}
    network = attach_head(student.module, run.example(student), kind="groups", layers=layers, **settings)
    roles = {f"branch{number + 1}": f"head.branches.{number}" for number in range(len(table))}
    mean, std = student.mean.flatten().tolist(), student.std.flatten().tolist()
    return Tapped(network, mean, std, roles={"network": "network"} | roles), network


def group_table(run: Run, grouping: Grouping, counts: list[int], folds: int) -> Tensor:
    """The group of each class in each branch, (branches, K) int64; step 1 of ``ssal``."""
    classes = run.data.num_classes
    if grouping == "identity":
        return torch.arange(classes).repeat(len(counts), 1)
    generators = [torch.Generator().manual_seed(mix_seeds(run.seed, 7, number)) for number in range(len(counts))]
    if grouping == "random":
        divisions = [random_groups(classes, count, rng) for count, rng in zip(counts, generators, strict=True)]
    else:
        confusion = out_of_fold_confusion(run, folds)
        divisions = [
            class_groups(confusion, count, rng, separate=grouping == "split")
            for count, rng in zip(counts, generators, strict=True)
        ]
    return torch.stack(divisions)


def out_of_fold_confusion(run: Run, folds: int) -> Tensor:
    """The confusion matrix (K, K) of predictions by networks that were not trained on the samples; a fit per fold."""
    check_folds(run.data.train.labels, run.data.classes, folds)
    train, numbers = run.data.train, itertools.count(1)
    predictions = torch.empty(len(train), dtype=torch.int64)
    for others, fold in stratified_folds(train.labels, folds, seed=mix_seeds(run.seed, 6)):
        model = run.student(next(numbers))
        data = replace(run.data, train=train.subset(others), validation=None)
        run.fit(Learner(model, None, {"ce": CrossEntropy()}), data=data)
        predictions[fold] = run.predict(model, train.subset(fold)).argmax(1)
    labels = hard_labels(train.labels)
    run.note(out_of_fold_accuracy=float((predictions == labels)[labels >= 0].float().mean()))
    return confusion_matrix(labels, predictions, run.data.num_classes)
