"""Teacher-student training and a triplet loss for images of which half is hidden."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.orders import PK
from tutelage.errors import TutelageError
from tutelage.evaluation.predict import labelled
from tutelage.methods import Positive, Share, method
from tutelage.methods._start import start_from_teacher
from tutelage.methods.occlusion.svm import choose_svm, fit_scale
from tutelage.methods.occlusion.triplet import CrossTriplets, cross_triplets
from tutelage.models.attach import find_classifier
from tutelage.models.fronts.occlude import Half, normalised_black
from tutelage.models.surgery.front import apply as put_front
from tutelage.models.surgery.join import Joined
from tutelage.models.surgery.join import apply as join
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.terms.triplets import collapsed
from tutelage.terms.unit import unit
from tutelage.training.learner import Learner
from tutelage.training.loop import Record
from tutelage.training.run import Run

COMPARED = 500  # training samples whose embeddings are looked at for collapse
BATCHES = 8  # whose triplets are counted in the end

Start = Literal["auto", "teacher", "trained"]


@dataclass(frozen=True)
class Students:
    """The networks that the fits give, each with the front that hides half of its input.

    Attributes:
        fine_tuned: by labels alone.
        soft: from there, by labels and the teacher's soft targets.
        triplet: from there, by the triplet loss; its own classifier is not trained further.
    """

    fine_tuned: Tapped
    soft: Tapped
    triplet: Tapped


@method(paper="Georgescu, Ionescu 2020, arXiv 2008.01003", family="response", evidence="abstract")
def occlusion(
    run: Run,
    *,
    hidden: Half = "upper",
    start: Start = "auto",
    alpha: Share = 0.7,
    temperature: Positive = 4.0,
    margin: Annotated[float, Field(gt=0, lt=4)] = 0.3,
    samples_per_class: Annotated[int, Field(ge=2)] = 8,
    tuning_lr: Positive = 0.2,
    c: Positive | None = None,
) -> Tapped:
    """Half of each image hidden: a teacher of whole images teaches two students, by soft targets and by triplets.

    o(x) is the image x with its upper or lower half black; the student blacks it out itself, by a layer before its
    first, so that teacher and student share the batch and its augmentation. With s the student's embeddings of o(x) and
    t the teacher's of x, both at length 1:

    1. The student starts from the teacher's weights.
    2. It is fine-tuned: L = CE(z(o(x)), y).
    3. From there, L = (1 - alpha) CE(z(o(x)), y) + alpha T^2 KL(softmax(v(x) / T) || softmax(z(o(x)) / T)).
    4. From step 2 again, L = mean over anchors a of [m + ||s_a - t_p||^2 - ||s_a - s_n||^2]_+, with the positive p of
       the teacher and the negative n of the student, the hardest ones of the batch (``cross_triplets``), in batches of
       ``samples_per_class`` samples of as many classes as they hold.
    5. e = [s of step 3; s of step 4], and a linear support vector machine on e, one class against the rest. The result
       is one network: both students, joined, with the machine as its classifier.

    Args:
        run: what to train. Each fit has the run's recipe, the second and later ones with ``tuning_lr`` times its
            learning rate.
        hidden: which half is hidden, of H rows the first H // 2 (upper, as by a headset) or the others.
        start: of step 1. "trained" trains the student on whole images in a fit of its own; "teacher" takes the
            teacher's weights and needs the same network; "auto" takes them where it is the same and trains otherwise.
        alpha, temperature: of step 3 [inferred].
        margin: m, between squared distances of vectors of length 1 [inferred: 0.2 to 0.5].
        samples_per_class: samples of each class in a batch of step 4 [inferred].
        tuning_lr: see ``run`` [ours].
        c: C of the support vector machine; unless given, the best of 0.01, 0.1, 1, 10 and 100 by the held-out part, or
            1 where nothing is held out.

    Raises:
        TutelageError: the inputs are no images, the student does not end in an ``nn.Linear``, ``start="teacher"`` with
            another network, or after an epoch of step 4 all embeddings are the same.

    ``result.json`` notes the start, C, and of step 4 the share of triplets with a loss above 0 and the mean distance
    of embeddings (a loss of exactly m and distances of 0 are a collapse).

    Evidence: the abstract. That half is blacked out, fine-tuning from the teacher, the start of both students from
    step 2 and the support vector machine are [from memory]; normalisation, mining, batches and the absence of a label
    loss in step 4 are [inferred].

    Deviations: the paper's teacher is pre-trained on other data. The paper mines its triplets in a way of its own.
    Embeddings of different widths are compared through a linear map, which is trained with the student. The outputs of
    the support vector machine are multiplied by one number, fitted on the held-out part, so that a softmax of them is
    of use; without a held-out part they are left as they are.
    """
    students = train_students(
        run,
        hidden=hidden,
        start=start,
        alpha=alpha,
        temperature=temperature,
        margin=margin,
        samples_per_class=samples_per_class,
        tuning_lr=tuning_lr,
    )
    return joined(run, students.soft, students.triplet, c=c)


def train_students(
    run: Run,
    *,
    hidden: Half,
    start: Start,
    alpha: float,
    temperature: float,
    margin: float,
    samples_per_class: int,
    tuning_lr: float,
) -> Students:
    """Steps 1 to 4 of ``occlusion``, whose parameters these are."""
    teacher, student = run.teacher(), run.student()
    source = run.frozen(teacher)
    terms, triplet = labels_and_soft_targets(alpha, temperature), CrossTriplets(margin)
    find_classifier(student.module, run.example(student))
    tried = _fronted(run, copy.deepcopy(student), hidden)
    run.check(Learner(tried, source, terms))
    run.check(Learner(tried, source, {"triplet": CrossTriplets(margin)}))
    order = PK(samples_per_class)
    order(run.data.train.labels, run.recipe.batch_size, torch.Generator())  # refuses batches that are too small
    same = start != "trained" and start_from_teacher(run, student, teacher)
    if start == "teacher" and not same:
        raise TutelageError(
            f"start=teacher takes the teacher's weights, and the student, {type(student.module).__name__}, is another "
            f"network than the teacher, {type(teacher.module).__name__}, or is normalised in another way; give the "
            "same, or start=trained"
        )
    run.note(start="teacher" if same else "trained")
    if not same:
        run.fit(Learner(student, None, {"ce": CrossEntropy()}))

    lr = tuning_lr * run.recipe.lr
    fine_tuned = _fronted(run, student, hidden)
    run.fit(Learner(fine_tuned, None, {"ce": CrossEntropy()}), lr=lr)
    soft, apart = copy.deepcopy(fine_tuned), copy.deepcopy(fine_tuned)
    run.fit(Learner(soft, source, terms), lr=lr)
    part = run.data.train.subset(torch.arange(min(COMPARED, len(run.data.train))))

    def check_spread(record: Record) -> bool:
        if collapsed(unit(run.predict(apart, part, ("embedding",)))):
            raise TutelageError(
                f"after epoch {record['epoch']} of the triplet loss all samples have the same embedding; lower the "
                f"learning rate (now {lr:g}, by tuning_lr) or the margin"
            )
        return False

    fitted = run.fit(Learner(apart, source, {"triplet": triplet}), order=order, until=check_spread, lr=lr)
    for record in fitted.history[-1:]:  # ``until`` is not called after the last epoch
        check_spread(record)
    _note_triplets(run, triplet, apart, teacher, order)
    return Students(fine_tuned, soft, apart)


def joined(run: Run, *students: Tapped, c: float | None = None) -> Tapped:
    """Step 5 of ``occlusion``: students, which lose their classifiers, as one network with a support vector machine."""
    first, *others = students
    network = join(first.module, run.example(first), members=len(students), others=[each.module for each in others])
    student = Tapped(network, first.mean.flatten().tolist(), first.std.flatten().tolist())
    train = labelled(run.data.train)
    held_out = None if run.data.validation is None else labelled(run.data.validation)
    apart = None if held_out is None else (run.predict(student, held_out, ("embedding",)), held_out.labels)
    features = run.predict(student, train, ("embedding",))
    weight, bias, chosen = choose_svm(features, train.labels, run.data.num_classes, apart, c)
    run.note(c=chosen)
    if apart is not None:
        factor = fit_scale(apart[0] @ weight.T + bias, apart[1])
        weight, bias = factor * weight, factor * bias
    _write(network, weight, bias)
    return student


@torch.no_grad()
def _write(network: Joined, weight: Tensor, bias: Tensor) -> None:
    network.classifier.weight.copy_(weight)
    network.classifier.bias.copy_(bias)


def _fronted(run: Run, student: Tapped, hidden: Half) -> Tapped:
    """The student, which hides half of its input from itself from now on."""
    example = run.example(student)
    fill = normalised_black(student.mean, student.std, int(example.shape[1]))
    put_front(student.module, example, kind="occlude", hidden=hidden, fill=fill)
    return student.rewrapped()


def _note_triplets(run: Run, term: CrossTriplets, student: Tapped, teacher: Tapped, order: PK) -> None:
    """Keep how many triplets have a loss above 0, and how far apart embeddings are, in a few batches of that order."""
    generator = torch.Generator().manual_seed(run.seed)
    batches = order(run.data.train.labels, run.recipe.batch_size, generator)[:BATCHES]
    part = run.data.train.subset(batches.flatten())
    own, other = (run.predict(model, part, ("embedding",)) for model in (student, teacher))
    with torch.no_grad():
        own, other = copy.deepcopy(term).cpu().compared(own, other)
        losses, distances = [], []
        size = batches.shape[1]
        for rows in (slice(first, first + size) for first in range(0, len(part), size)):
            losses.append(cross_triplets(own[rows], other[rows], part.labels[rows], term.margin)[0])
            distances.append(torch.pdist(own[rows]))
    run.note(
        active_triplets=float((torch.cat(losses) > 0).float().mean()),
        mean_distance=float(torch.cat(distances).mean()),
    )
