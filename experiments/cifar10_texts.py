"""The texts of the pages of ``experiments.cifar10``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

HEAD = """
# CIFAR-10, {title}

**Question.** Do the nine methods help a small student on CIFAR-10? Here: {title}.
[cifar10.md](cifar10.md) sums up all questions.

**Data.** {images:,} training images of CIFAR-10, and its 10,000 test images, which are evaluated once. Random crops and
flips, with four fixed variants of each image.

**Networks.** The student is a ResNet-8 whose first convolution has stride 2 (75,290 parameters); the teacher is
{teacher}.

**Training.** {epochs} epochs with batches of 128, SGD with Nesterov momentum 0.9, weight decay 0.0005, two epochs of
warm-up and a cosine schedule. Evaluation is after the last epoch. Runs take bfloat16 where the processor has
instructions for it, else float32; each line of the raw results names its precision.

**Tuning.** Each row has three trials of {trial_epochs} epochs, compared by accuracy on a held-out tenth of the training
data, with a seed that is not reported. The plain student tries learning rates, a method its own parameters at a
learning rate of {lr}.
"""

TEACHERS: Mapping[str | None, str] = MappingProxyType(
    {
        None: "a ResNet-20 with the same stride, trained on the same labels in the same way, for each seed its own",
        "resnet20": "a ResNet-20 of 91.7 % test accuracy",
        "resnet56": "a ResNet-56 of 93.4 % test accuracy",
    }
)

CURVES = """
## Training

Loss and accuracy of the plain student on augmented training images by epoch: means of three seeds with their 95 %
intervals.

![Loss and accuracy of the plain student by epoch](cifar10-{name}.png)
"""

CLEAN = """
## What it shows

- **The student has 80.4 % without a teacher**, and eight methods change that by a point at most. `sp` (+0.9) and
  Hinton's loss (+0.7) are better with intervals that exclude 0, though not after Holm's correction; Hinton's loss also
  in the worst class (+2.5 points). The means of `fitnet`, `fsp`, `dml` and `rkd` are below plain training.
- `bss` is not finished. Its first seed has 81.5 %, 1.5 points more than plain training, at six times the time.
- The loss of the plain student levels off only in the last two epochs, when the cosine schedule ends (figure below).
- **Two methods calibrate badly**: the calibration error is 0.140 with Hinton's loss, whose trials chose a temperature
  of 10, and 0.088 with `fitnet`, against 0.023 without a teacher.

## What it does not show

- What the methods gain at the learning rate of the plain student. Its trials chose 0.2 (72.3 % held-out accuracy; 69.1
  at 0.1), and could have gained from more; the methods have 0.1 throughout. So the plain student is a strong baseline.
- What a longer schedule would give: 20 epochs are a tenth of the usual length, and trials had 5.
"""

IMBALANCE = """
## What it shows

- **Five methods improve the student**: similarity preservation (`sp`) by 3.6 points, `rkd` 2.9, `at` 2.7, `bss` 2.6 and
  Hinton's loss 1.9. The interval of each excludes 0, but with three seeds none is significant after Holm's correction
  for nine methods.
- **Calibration is better with every method**, by 0.02 to 0.05; only the interval of `fsp` includes 0.
- **`fsp` and `dml` are worse than plain training**, by 2.4 and 2.8 points: not every method helps.

## What it does not show

- Whether `fitnet` helps: its seeds differ by 3.6 points. `one` equals plain training within its interval.
- A gain in the worst class: all intervals include 0.
- What a longer tuning would give: the held-out tenth has 866 images with the same imbalance, so that trials are
  compared by frequent classes, and trials are short. Teachers and trials ran in bfloat16, all final runs in float32.
"""
