"""Imprecise labels in a hierarchy of classes."""

from __future__ import annotations

from typing import Any

from tutelage.data.hierarchy import Hierarchy
from tutelage.methods import method
from tutelage.methods.chillax.loss import NodeCrossEntropy
from tutelage.methods.chillax.surgery import nodes
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Brust, Barz, Denzler 2020, arXiv 2010.06469", family="imprecise labels", evidence="code")
def chillax(run: Run, *, hierarchy: dict[str, Any] | str | None = None) -> Tapped:
    """CHILLAX (imprecise labels): labels may be groups of classes, predictions are classes.

        L = sum over nodes v that the label determines of BCE(sigmoid(z_v), t_v)
        P(v) = sigmoid(z_v) (1 - prod over parents p of v of (1 - P(p)))

    The classifier has one output z_v for each node of a hierarchy of classes, the probability of v given a parent. A
    label determines its node and the ancestors of it (t = 1), and the siblings of each of them (t = 0). What is below
    the label is left out, so that an imprecise label says nothing wrong. The logits of the network are log P of the
    classes, whose softmax normalises them; groups are never predicted.

    An imprecise label is a soft label that is uniform over the classes of its group, as ``--noise
    imprecise:FILE:0.9`` makes them (``Imprecise``), or as (N, C) labels of an ``npz:`` data set. Samples with such
    labels count as unlabelled in accuracies, also in those of the held-out split.

    Args:
        run: the run; a teacher is not used.
        hierarchy: a file, ``.yaml`` or ``.json`` of nested names such as ``birds: [hen, bunting]``, or an ``.npz`` with
            coarse labels (see ``Hierarchy.read``); or the nested names themselves, as a mapping. Nodes may have several
            parents. Without one, a root is above all classes, and the loss is binary cross-entropy of each class.

    ``hierarchical_distance`` of the evaluation is the mean number of edges between predicted and true class.

    Evidence: the authors' code. The settings of their experiments are not known.

    Deviations: the gradient of log-probabilities is exact, where the authors clip probabilities at 1e-7. A sibling that
    shares classes with the label, as nodes with several parents can, is left out, since it may be true; and the label
    of a group with one member counts as that of the member. Weight decay is that of the recipe, 5e-4 by default
    (the authors': 5e-5 times the squared weights of the last layer). Optional weights of nodes are left out, and so is
    the replacement of labels during training, which is of a later paper.
    """
    graph = hierarchy_of(run, hierarchy)
    student = run.student()
    nodes.apply(student.module, run.example(student), edges=graph.edges)
    student = student.rewrapped()
    run.fit(Learner(student, None, {"nodes": NodeCrossEntropy(nodes.NODES, graph)}, evaluated=True))
    return student


def hierarchy_of(run: Run, hierarchy: dict[str, Any] | str | None) -> Hierarchy:
    """The hierarchy of the run's classes.

    Raises:
        TutelageError: it does not fit them, or cannot be read.
    """
    if hierarchy is None:
        return Hierarchy.flat(run.data.num_classes)
    if isinstance(hierarchy, str):
        return Hierarchy.read(hierarchy, run.data.classes)
    return Hierarchy.of(hierarchy, run.data.classes)
