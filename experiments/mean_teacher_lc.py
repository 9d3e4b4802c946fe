"""Mean Teacher and local clustering on digits with 20 or 50 labels: python -m experiments.mean_teacher_lc."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.nets import NoisyMLP
from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Split, open_data
from tutelage.data.orders import LabelledFirst
from tutelage.evaluation import predict
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.sources import EMA, SecondView
from tutelage.tasks import evaluate
from tutelage.terms import CrossEntropy, SoftmaxMSE
from tutelage.training import Learner, Run
from tutelage.training.loop import Record
from tutelage.training.ramp import sigmoid_ramp_up

EPOCHS, BATCH, LABELLED, START = 40, 160, 32, 0.6
CONSISTENCY, RAMP, QUANTILE = 3.0, 0.2, 0.02
FIRST_SEED = 200  # separate from the seeds with which the settings were chosen
RECIPE = Recipe(
    epochs=EPOCHS, batch_size=BATCH, lr=0.05, weight_decay=1e-4, schedule="step", milestones=(0.8,), gamma=0.1
)
CLUSTERING = {"mean teacher": 0.0, "mean teacher + clustering 1": 1.0, "mean teacher + clustering 10": 10.0}
ROWS = ("labelled only", "mean teacher, one pass", *CLUSTERING)


def run(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
    """Train one row and measure its accuracy and the geometry of its features on unlabelled images."""
    seed += FIRST_SEED
    digits = replace(open_data("digits"), views=CropsAndFlips(pad=1))
    labelled = labelled_indices(digits.train.labels, int(condition) // digits.num_classes, seed)
    hidden = torch.full_like(digits.train.labels, -1)
    hidden[labelled] = digits.train.labels[labelled]
    unlabelled = digits.train.subset((hidden < 0).nonzero().squeeze(1))
    students: list[Tapped] = []
    at_start: list[float] = []

    def student() -> Tapped:
        students.append(Tapped(NoisyMLP(digits.num_classes, 64, noise=1.0), *digits.mean_std))
        return students[-1]

    def report(record: Record) -> None:
        if record["epoch"] == round(START * EPOCHS):
            at_start.append(geometry(students[0], unlabelled)["purity"])

    options: dict[str, Any] = {"hardware": Hardware(device="cpu", precision="float32", workers=0), "seed": seed}
    if row == "labelled only":
        steps = EPOCHS * (len(unlabelled) // (BATCH - LABELLED))
        data = replace(digits, train=digits.train.subset(labelled))
        model = find("plain")(Run(data, student, recipe=RECIPE.replace(epochs=steps, batch_size=LABELLED), **options))
        at_start.append(float("nan"))
    else:
        data = replace(digits, train=replace(digits.train, labels=hidden))
        semi_supervised = Run(data, student, recipe=RECIPE, report=report, **options)
        model = METHODS[row](semi_supervised)
    return {
        "accuracy": evaluate(model, digits, device="cpu")["accuracy"],
        "unlabelled": float((predict(model, unlabelled, device="cpu").argmax(1) == unlabelled.labels).float().mean()),
        **geometry(model, unlabelled),
        "purity_at_start": at_start[0],
    }


def method(clustering: float) -> Callable[[Run], Tapped]:
    """The method with this weight of the clustering."""

    def train(run: Run) -> Tapped:
        model: Tapped = find("mean_teacher_lc")(
            run,
            labelled=LABELLED / BATCH,
            consistency=CONSISTENCY,
            consistency_ramp=RAMP,
            clustering=clustering,
            clustering_start=START,
            quantile=QUANTILE,
        )
        return model

    return train


def in_one_pass(run: Run) -> Tapped:
    """Mean Teacher whose networks run on labelled and unlabelled samples together."""
    student = run.student()
    average = EMA(student, 0.99, "own", warm_start=False, start=run.student(1))
    terms = {
        "ce": BATCH / LABELLED * CrossEntropy(),  # the mean is over all samples, most of which have no label
        "consistency": SoftmaxMSE() * (lambda progress: CONSISTENCY * sigmoid_ramp_up(progress, RAMP)),
    }
    run.fit(Learner(student, SecondView(average), terms, deployed=average.model), order=LabelledFirst(LABELLED))
    return average.model


METHODS: dict[str, Callable[[Run], Tapped]] = {
    "mean teacher, one pass": in_one_pass,
    **{row: method(weight) for row, weight in CLUSTERING.items()},
}


def labelled_indices(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """The indices of some random samples of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = labels[order]
    return torch.cat([order[classes == label][:per_class] for label in range(int(labels.max()) + 1)])


@torch.no_grad()
def geometry(model: Tapped, split: Split) -> dict[str, float]:
    """Statistics of the embeddings of a split.

    ``ratio``: median squared distance within a class, divided by that between classes. ``purity``: the share of
    same-class pairs among the nearest tenth of all pairs.
    """
    assert isinstance(split.inputs, Tensor)
    inputs = split.inputs.permute(0, 3, 1, 2) / 255
    distances = torch.pdist(model.eval().tap(inputs, ("embedding",))["embedding"]).square()
    first, second = torch.triu_indices(len(split), len(split), 1)
    same_class = split.clean_labels[first] == split.clean_labels[second]
    nearest = distances <= distances.kthvalue(len(distances) // 10).values
    return {
        "ratio": float(distances[same_class].median() / distances[~same_class].median()),
        "purity": float(same_class[nearest].float().mean()),
    }


EXPERIMENT = Experiment(
    name="mean_teacher_lc",
    head="""
# Mean Teacher and local clustering: few labels (`mean_teacher_lc`)

**Question.** Chen et al. (2020) extend Mean Teacher by a loss that pulls neighbouring features together late in
training. Does Mean Teacher help with few labels? Does clustering improve it, and do features of one class really move
closer? The networks of `mean_teacher_lc` run on labelled and on unlabelled samples separately, as in the authors' code:
does that matter?

**Data.** Digits with 2 labels per class, drawn by the seed; the other 1,417 training images are unlabelled. 360 test
images. Paired seeds.

**Network.** An MLP with 128 and 64 hidden units, batch normalisation, and Gaussian noise of 1.0 on its normalised input
in training. Student and average see different crops, of an image padded by one pixel, with different noise.

**Training.** 40 epochs with batches of 32 labelled and 128 unlabelled images; SGD with a learning rate of 0.05, divided
by 10 after 80 %.

**Rows.** *Labelled only* is the plain network trained on the labelled images alone, with the same crops and noise and
for as many steps. *Mean teacher, one pass* runs both networks on all 160 images of a batch together, so that batch
normalisation mixes labelled and unlabelled ones; its loss is the same. *Clustering* has the weight 1 or the default 10.

**Settings and tuning.** Each choice had four trials with three other seeds, by accuracy on unlabelled training images:
the learning rate of *labelled only* (0.01, 0.02, 0.05, 0.1); w_c and its ramp for Mean Teacher (3, 10 or 30 with a ramp
over 20 % of the run, 30 with 60 %), which gave w_c = 3 and 20 %; the weight and the quantile of clustering (1 with 0.02
and 0.3, 10 with 0.02 and 0.1; on top of w_c = 10 with a ramp over 60 %; all within 0.1 points), which gave the quantile
0.02. *One pass* has the settings of two. Everything else is a default: decay 0.99, an average with its own initial
weights and statistics, clustering from 60 % of the run.

**Columns.** The accuracy of the average on the test split, and on the unlabelled training images by their true labels,
which no run reads. The median distance between features of one class divided by that between features of different
classes, on unlabelled training images. *Pure pairs* is the share of same-class pairs among the nearest tenth of all
pairs, at the end and, in the student, when clustering begins. A tenth of all pairs are of one class, so 100 % is
possible.
""",
    measure=run,
    rows=ROWS,
    columns={
        "accuracy": Column("test accuracy"),
        "unlabelled": Column("accuracy on unlabelled training images"),
        "ratio": Column("same / different distance", share=False, digits=3),
        "purity": Column("pure pairs"),
        "purity_at_start": Column("pure pairs at the start of clustering"),
    },
    baseline="mean teacher",
    conditions={"20": "20 labels"},
    seeds=5,
    tail="""
## What it shows

- **Mean Teacher helps**: *labelled only* is 2.2 ± 1.4 points below it on the unlabelled training images. On the test
  split, a quarter as large, the difference is 2.3 ± 2.6.
- **Separate passes do not help here.** With one pass for all samples, the accuracy is 1.4 ± 1.3 points higher on the
  test split and 0.1 ± 1.2 points on the unlabelled images. The method has two because the authors' code has.
- **Clustering does not improve accuracy**: with either weight both accuracies are within a point of Mean Teacher, and
  the intervals include 0.
- **Nor does it move the features of one class closer to each other than those of different classes**, in any amount
  that matters: the ratio of distances falls by 0.002 with weight 1, and with weight 10 its interval includes 0. The
  share of pure pairs among the nearest falls, with weight 10 by 4.6 ± 1.5 points. When clustering begins, about 59 % of
  these pairs are of one class; the method pulls the others together as well, which is consistent with its late start in
  the paper.

## What it does not show

The published result, for a convolutional network on CIFAR-10 and SVHN and far longer training, with neighbours that are
mostly of one class. A difference between one and two passes with other noise, weights or batches.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
