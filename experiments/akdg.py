"""Does a teacher's discriminator help a small generator, with many real images and with few? Digits, on a CPU.

python -m experiments.akdg
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.paired import Experiment, main
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, open_data
from tutelage.data.batch import Batch
from tutelage.evaluation import evaluate_generator
from tutelage.methods import find
from tutelage.models.generator import Generator
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.runs import execute
from tutelage.runs.models import make_student
from tutelage.terms import Term
from tutelage.training import Learner, Run

PLACE = Path("runs/akdg")
STEPS = 440
FEW = 64
CRITICS: dict[str, Any] = {"critic_steps": 1, "critic_width": 0.25, "lr": 1e-3}
ROWS: dict[str, dict[str, Any]] = {
    "vanilla": {"weight": 0},
    "akdg": {},
    "teacher alone": {"real": False},
}
ON_CPU = Hardware(device="cpu", precision="float32", channels_last=False, workers=0)

HEAD = """# Does a teacher's discriminator help a small generator?

Tsunashima et al. 2020 (AKDG) compress a generator with a second discriminator, which separates its images from the
teacher's. Here a small generator learns the 8x8 grey digits of scikit-learn with four losses. *vanilla* has real images
and no teacher; *mse* regresses the teacher's image of the same latent, pixel by pixel, without real images; *akdg* has
both discriminators, weight 1; *teacher alone* has only the discriminator against the teacher, without real images.

The teacher is `dcganx0.5` (165,345 parameters), a vanilla GAN of 60 epochs on all 1,437 training images; there is one,
for all rows and seeds. The student is `dcganx0.125` (35,193), of 440 steps of batch 64. Discriminators have a quarter
of the usual channels, all networks Adam with lr 0.001 and betas (0, 0.9), and the generator steps on each batch: the
five discriminator steps of SNGAN would leave it 88 steps here. With few real images the teacher is the same, which saw
all of them, and *mse* and *teacher alone*, which see none, would be what they are with many.

FD is the Fréchet distance between 2,000 generated images and the 360 real test images, lower is better: once on the
embedding of a `resnet8x0.5` trained on all training images, once on the test part's 64 principal components of pixels.
It is no FID, and only numbers in one column compare. Coverage is the share of test images with a generated one as near
as their fifth real neighbour, in that embedding. The score is the inception score, by that classifier, of at most 10.
"""

TAIL = """
The teacher itself is at an FD of 1.28 and, in pixels, 0.329.

- With all real images *akdg* does not differ significantly from *vanilla*: all intervals include 0. A student with
  enough real images and 440 steps gains nothing that could be measured here.
- With 64 real images the distance in pixels falls by about a fifth; the distance in features falls, too, but its
  interval includes 0.
- *mse* is the best row, which is the opposite of the paper's tables. Its regression has a target in every step, and so
  is far ahead of any GAN after 440; that averaging blurs would show with longer training, larger images, or a student
  that cannot follow the teacher's map from latents to images, as an MLP under a ResNet.
- *teacher alone* sees no real image and comes near *vanilla* with all of them.

Not shown: the paper's setting (CIFAR-10, SNGAN, 100,000 generator steps), another weight than 1, another student.
There is one teacher and one classifier, so the intervals do not include their variation.
"""


class Paired(Term):
    """||G_S(z) - G_T(z)||^2 per sample, of one and the same z (Aguinaldo et al. 2019, arXiv 1902.00159)."""

    roles = ("image", "latent")
    teacher_roles = ()

    def __init__(self, teacher: Generator) -> None:
        super().__init__()
        self.teacher = (teacher.eval().requires_grad_(False),)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), squared pixels."""
        return (student["image"] - self.teacher[0](student["latent"])).square().flatten(1).sum(1)


@cache
def trained(student: str, method: str, epochs: int) -> Tapped:
    """A network trained on all training images, once for all rows and seeds."""
    settings = {**CRITICS, "weight": 0} if method == "akdg" else {}
    config = Config(
        student=student,
        method=method,
        settings=settings,
        epochs=epochs,
        validation=0,
        **ON_CPU.model_dump(),
    )
    return execute(config, PLACE / student).model.eval()


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one student and judge it."""
    classifier, teacher = trained("resnet8x0.5", "plain", 15), trained("dcganx0.5", "akdg", 60)
    assert isinstance(teacher, Generator)
    data = open_data("digits")
    if condition == "few":
        data = few(data, seed)
    steps = max(1, len(data.train) // 64)
    recipe = Recipe(epochs=STEPS // steps)
    training = Run(
        data, lambda: make_student("dcganx0.125", data), [teacher], recipe=recipe, hardware=ON_CPU, seed=seed
    )
    if row == "mse":
        student = training.student()
        training.fit(
            Learner(student, None, {"mse": Paired(teacher)}),
            data=replace(data, views=CropsAndFlips()),
            optimizer=partial(torch.optim.Adam, lr=CRITICS["lr"], betas=(0.0, 0.9)),
            schedule="constant",
        )
    else:
        student = find("akdg")(training, **CRITICS, **ROWS[row])
    assert isinstance(student, Generator)
    by_class = evaluate_generator(student, data, classifier=classifier, teacher=teacher)
    by_pixel = evaluate_generator(student, data, teacher=teacher)
    return {
        "distance": by_class["frechet_distance"],
        "distance_of_pixels": by_pixel["frechet_distance"],
        "coverage": by_class["coverage"],
        "inception_score": by_class["inception_score"],
        "teacher_distance": by_class["teacher_frechet_distance"],
        "teacher_distance_of_pixels": by_pixel["teacher_frechet_distance"],
    }


def few(data: Data, seed: int) -> Data:
    """With 64 training images, drawn by the seed."""
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:FEW]
    return replace(data, train=data.train.subset(drawn.sort().values))


EXPERIMENT = Experiment(
    name="akdg",
    head=HEAD,
    measure=run,
    rows=("vanilla", "mse", "akdg", "teacher alone"),
    columns={
        "distance": Column("FD (features of a classifier)", share=False, digits=2),
        "distance_of_pixels": Column("FD (principal components of pixels)", share=False, digits=3),
        "coverage": Column("coverage"),
        "inception_score": Column("score by that classifier", share=False, digits=2),
    },
    baseline="vanilla",
    conditions={"many": "All 1,437 real images", "few": "64 real images"},
    seeds=5,
    skip=frozenset({("few", "mse"), ("few", "teacher alone")}),
    tail=TAIL,
)

if __name__ == "__main__":
    main(EXPERIMENT)
