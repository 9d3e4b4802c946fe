"""Teacher-student training with soft targets and a triplet loss for images of which half is occluded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.orders import PK
from tutelage.errors import TutelageError
from tutelage.evaluation.predict import labelled_samples
from tutelage.methods import Positive, Share, method
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.methods.occlusion.fronts.occlude import Half, normalised_black
from tutelage.methods.occlusion.svm import fit_scale, select_svm
from tutelage.methods.occlusion.triplet import CrossTriplets, cross_triplets
from tutelage.models.attach import find_classifier
from tutelage.models.surgery import front, join
from tutelage.models.surgery.join import Joined
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.terms.triplets import collapsed
from tutelage.terms.unit import unit
from tutelage.training.learner import Learner
from tutelage.training.loop import Record
from tutelage.training.run import Run

CHECKED_SAMPLES = 500  # training samples whose embeddings are checked for collapse
BATCHES = 8  # whose triplets are counted at the end

Start = Literal["auto", "teacher", "trained"]


@dataclass(frozen=True)
class Students:
    """The trained networks, each with the front that blacks out half of its input.

    Attributes:
        fine_tuned: trained on labels alone.
        soft: ``fine_tuned``, trained further on labels and the teacher's soft targets.
        triplet: ``fine_tuned``, trained further on the triplet loss, which does not train its classifier.
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
    """Occluded images: a teacher of whole images trains two students of half images, by soft targets and triplets.

    o(x) is the image x with its upper or lower half black. The student applies o itself, by a layer before its first,
    so that teacher and student share the batch and its augmentation. With s the student's embeddings of o(x) and t the
    teacher's of x, both scaled to length 1:

    1. The student starts from the teacher's weights.
    2. It is fine-tuned with L = CE(z(o(x)), y).
    3. From there, L = (1 - alpha) CE(z(o(x)), y) + alpha T^2 KL(softmax(v(x) / T) || softmax(z(o(x)) / T)).
    4. From step 2 again, L = mean over anchors a of [m + ||s_a - t_p||^2 - ||s_a - s_n||^2]_+, with the teacher's
       hardest positive p and the student's hardest negative n in the batch (``cross_triplets``). A batch has
       ``samples_per_class`` samples of as many classes as it can hold.
    5. A linear one-versus-rest support vector machine is fitted to e = [s of step 3; s of step 4]. The result is one
       network: both students joined, with the support vector machine as its classifier.

    Args:
        run: the run. Each fit uses its recipe, the second and later ones with ``tuning_lr`` times its learning rate.
        hidden: which half is hidden: of H rows the first H // 2 ("upper", as by a headset) or the others ("lower").
        start: step 1. "trained" trains the student on whole images in a fit of its own; "teacher" copies the teacher's
            weights and needs the same network; "auto" copies them if it is the same and trains otherwise.
        alpha, temperature: of step 3 [inferred].
        margin: m, for squared distances of vectors of length 1 [inferred: 0.2 to 0.5].
        samples_per_class: samples of each class in a batch of step 4 [inferred].
        tuning_lr: see ``run`` (our choice).
        c: C of the support vector machine; ``None`` selects from 0.01, 0.1, 1, 10 and 100 on the held-out split, or
            uses 1 without one.

    Raises:
        TutelageError: the inputs are not images, the student does not end in an ``nn.Linear``, ``start="teacher"`` with
            another network, or all embeddings are equal after an epoch of step 4.

    ``result.json`` records the start, C, and for step 4 the share of triplets with a loss above 0 and the mean distance
    of embeddings (a loss of exactly m and distances of 0 mean a collapse).

    Evidence: the abstract. That half of the image is blacked out, fine-tuning from the teacher, the start of both
    students from step 2 and the support vector machine are [from memory]; normalisation, mining, batches and the
    absence of a label loss in step 4 are [inferred].

    Deviations: the paper's teacher is pre-trained on other data, and its mining of triplets differs. Embeddings of
    different widths are compared through a linear map, which is trained with the student. The outputs of the support
    vector machine are multiplied by a number fitted on the held-out split, so that their softmax is meaningful; without
    a held-out split they are not scaled.
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
    """Steps 1 to 4 of ``occlusion``, with its parameters."""
    teacher, student = run.teacher(), run.student()
    source = run.frozen(teacher)
    terms, triplet = labels_and_soft_targets(alpha, temperature), CrossTriplets(margin)
    find_classifier(student.module, run.example(student))
    checked = _occluded(run, copy.deepcopy(student), hidden)
    run.check(Learner(checked, source, terms))
    run.check(Learner(checked, source, {"triplet": CrossTriplets(margin)}))
    order = PK(samples_per_class)
    order(run.data.train.labels, run.recipe.batch_size, torch.Generator())  # raises if batches are too small
    same_network = start != "trained" and start_from_teacher(run, student, teacher)
    if start == "teacher" and not same_network:
        raise another_network(student, teacher, "trained")
    run.note(start="teacher" if same_network else "trained")
    if not same_network:
        run.fit(Learner(student, None, {"ce": CrossEntropy()}))

    lr = tuning_lr * run.recipe.lr
    fine_tuned = _occluded(run, student, hidden)
    run.fit(Learner(fine_tuned, None, {"ce": CrossEntropy()}), lr=lr)
    soft, metric = copy.deepcopy(fine_tuned), copy.deepcopy(fine_tuned)
    run.fit(Learner(soft, source, terms), lr=lr)
    subset = run.data.train.subset(torch.arange(min(CHECKED_SAMPLES, len(run.data.train))))

    def check_spread(history: Sequence[Record]) -> bool:
        if collapsed(unit(run.predict(metric, subset, ("embedding",)))):
            raise TutelageError(
                f"after epoch {len(history)} of the triplet loss all samples have the same embedding; lower the "
                f"learning rate (now {lr:g}, by tuning_lr) or the margin"
            )
        return False

    fitted = run.fit(Learner(metric, source, {"triplet": triplet}), order=order, until=check_spread, lr=lr)
    if fitted.history:  # ``until`` is not called after the last epoch
        check_spread(fitted.history)
    _note_triplets(run, triplet, metric, teacher, order)
    return Students(fine_tuned, soft, metric)


def joined(run: Run, *students: Tapped, c: float | None = None) -> Tapped:
    """Step 5 of ``occlusion``: join students without their classifiers, with a support vector machine as classifier."""
    first, *rest = students
    network = join.apply(
        first.module, run.example(first), members=len(students), others=[other.module for other in rest]
    )
    student = Tapped(network, first.mean.flatten().tolist(), first.std.flatten().tolist())
    train = labelled_samples(run.data.train)
    validation = None if run.data.validation is None else labelled_samples(run.data.validation)
    held_out = None if validation is None else (run.predict(student, validation, ("embedding",)), validation.labels)
    features = run.predict(student, train, ("embedding",))
    weight, bias, c = select_svm(features, train.labels, run.data.num_classes, held_out, c)
    run.note(c=c)
    if held_out is not None:
        factor = fit_scale(held_out[0] @ weight.T + bias, held_out[1])
        weight, bias = factor * weight, factor * bias
    _set_classifier(network, weight, bias)
    return student


@torch.no_grad()
def _set_classifier(network: Joined, weight: Tensor, bias: Tensor) -> None:
    network.classifier.weight.copy_(weight)
    network.classifier.bias.copy_(bias)


def _occluded(run: Run, student: Tapped, hidden: Half) -> Tapped:
    """The student with a front that blacks out half of its input."""
    example = run.example(student)
    fill = normalised_black(student.mean, student.std, int(example.shape[1]))
    front.apply(student.module, example, kind="occlude", hidden=hidden, fill=fill)
    return student.rewrapped()


def _note_triplets(run: Run, term: CrossTriplets, student: Tapped, teacher: Tapped, order: PK) -> None:
    """Record the share of triplets with a loss above 0 and the mean distance of embeddings in a few batches."""
    generator = torch.Generator().manual_seed(run.seed)
    batches = order(run.data.train.labels, run.recipe.batch_size, generator)[:BATCHES]
    subset = run.data.train.subset(batches.flatten())
    embeddings, targets = (run.predict(model, subset, ("embedding",)) for model in (student, teacher))
    with torch.no_grad():
        embeddings, targets = copy.deepcopy(term).cpu().comparable(embeddings, targets)
        losses, distances = [], []
        size = batches.shape[1]
        for rows in (slice(start, start + size) for start in range(0, len(subset), size)):
            losses.append(cross_triplets(embeddings[rows], targets[rows], subset.labels[rows], term.margin)[0])
            distances.append(torch.pdist(embeddings[rows]))
    run.note(
        active_triplets=float((torch.cat(losses) > 0).float().mean()),
        mean_distance=float(torch.cat(distances).mean()),
    )
