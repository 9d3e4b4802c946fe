"""Pseudo-labels, hints and density of a pretrained teacher on photographs (fastsal).

python -m experiments.fastsal_scenes
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.fastsal import HARDWARE, recipe
from experiments.paired import ROOT, Experiment, main
from experiments.photographs import halves, photographs
from tutelage.data import Data
from tutelage.evaluation.saliency import auc_judd, auc_shuffled, cc, centre_prior, kl, nss
from tutelage.methods import find
from tutelage.models.networks.resnet import ResNet
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.sources import TeacherCache
from tutelage.tasks import Compute, find_task
from tutelage.training import Run

FOLDER = ROOT / "runs" / "data"  # of the pretrained weights
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pretrained networks
STUDENT, TEACHER = (20, 8), (56, 32)  # depth and channels of the blocks
LABELLED, STEPS, BATCH = 48, 150, 16
TEACHER_EPOCHS, TEACHER_RATE = 6, 0.005
MAXIMUM_LOGIT = 12.0  # of maps as networks
PEOPLE = "half of the people"
FIXED = ("centred Gaussian", "mean of the labelled maps", "mean of all maps", PEOPLE)


@dataclass(frozen=True)
class Row:
    """A method with its settings and learning rate, and how many photographs it sees and knows maps of."""

    method: str = "fastsal"
    settings: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 0.01
    photographs: int = 400
    labelled: int = LABELLED


WITHOUT_HINTS, HINTS = {"hint_share": 0.0, "schedule": "recipe"}, {"hint_share": 0.5, "schedule": "recipe"}
ROWS: Mapping[str, Row] = {
    "plain": Row("plain", rate=0.1, photographs=LABELLED),
    "plain, all maps": Row("plain", labelled=400),
    "fastsal": Row(settings=WITHOUT_HINTS),
    "fastsal, hints": Row(settings=HINTS),
    "fastsal, hints, density": Row(settings=HINTS | {"loss": "density"}, rate=0.03),
}


class Pretrained(nn.Module):
    """A ResNet of CIFAR-10, whose weights are frozen, and four blocks that merge its features into a map.

    Args:
        depth: 20 or 56.
        channels: of the blocks.

    Attributes:
        roles: the blocks from fine to coarse, at a half to a sixteenth of the size of the image: ``level1`` ..
            ``level4`` of a student, ``decoder1`` .. ``decoder4`` of a teacher.
    """

    roles: ClassVar[dict[str, str]] = {
        f"{name}{number}": f"blocks.{number - 1}" for name in ("level", "decoder") for number in range(1, 5)
    }

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.encoder = ResNet(depth)
        self.encoder.load_state_dict(load_file(FOLDER / f"cifar10-resnet{depth}.safetensors"))
        self.encoder.requires_grad_(False)
        features = (32, 64, 64, 64 - channels)
        self.blocks = nn.ModuleList(_block(count + channels, channels) for count in features)
        self.head = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), H and W multiples of 16, to logits (B, 1, H, W)."""
        x = self.encoder.layer1(F.relu(self.encoder.bn1(self.encoder.conv1(x))))
        half = self.encoder.layer2(x)
        quarter = self.encoder.layer3(half)
        eighth = F.avg_pool2d(quarter, 2)
        fine, middle, coarse, coarsest = self.blocks
        y = coarsest(F.avg_pool2d(eighth, 2))
        for block, maps in ((coarse, eighth), (middle, quarter), (fine, half)):
            y = block(torch.cat([maps, F.interpolate(y, scale_factor=2.0)], 1))
        return F.interpolate(self.head(y), scale_factor=2.0, mode="bilinear", align_corners=False)


def network(depth: int, channels: int) -> Tapped:
    """A pretrained network, with new weights in its blocks."""
    return Tapped(Pretrained(depth, channels), MEAN, STD)


def _block(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())


class FixedMap(nn.Module):
    """The same map for every image.

    Args:
        saliency: (H, W) in [0, 1].
    """

    def __init__(self, saliency: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", saliency.logit().clamp(-MAXIMUM_LOGIT, MAXIMUM_LOGIT))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, 1, H, W)."""
        return self.logits.expand(len(x), 1, -1, -1)  # type: ignore[operator]


def training_images(row: Row, seed: int, data: Data) -> Data:
    """The photographs of a row, of which the first have maps; each seed draws them."""
    part = data.train.subset(drawn(seed, data)[: row.photographs])
    labels = part.labels.clone()
    labels[row.labelled :] = math.nan
    return replace(data, train=replace(part, labels=labels))


def drawn(seed: int, data: Data) -> Tensor:
    """The training photographs in the order of a seed, (N,)."""
    return torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))


def trained(row: Row, seed: int, data: Data) -> Tapped:
    """The student of a row: each takes ``STEPS`` steps, or up to ten less."""
    images = training_images(row, seed, data)
    training = Run(
        images,
        lambda: network(*STUDENT),
        [] if row.method == "plain" else [teacher(data)],
        recipe=recipe(STEPS // (len(images.train) // BATCH), row.rate).replace(batch_size=BATCH),
        hardware=HARDWARE,
        seed=seed,
        teacher_cache=None if row.method == "plain" else teacher_cache(data),
    )
    return find(row.method)(training, **row.settings)


@functools.cache
def teacher(data: Data) -> Tapped:
    """The teacher of all rows and seeds, whose decoder learns the maps of all training photographs."""
    training = Run(
        data,
        lambda: network(*TEACHER),
        recipe=recipe(TEACHER_EPOCHS, TEACHER_RATE),
        hardware=HARDWARE,
        seed=1000,
    )
    return find("plain")(training).eval()


@functools.cache
def teacher_cache(data: Data) -> TeacherCache:
    """The teacher's outputs for all training photographs, until the process ends."""
    return TeacherCache(Path(_temporary().name), data)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def measured(model: nn.Module, data: Data) -> dict[str, float]:
    """The metrics on the test split."""
    values = find_task("saliency").evaluate(model, data.test, data, Compute(workers=0))
    return {name: values[name] for name in ("cc", "nss", "auc_judd", "auc_shuffled", "kl")}


def people(seed: int) -> dict[str, float]:
    """The metrics of the maps of half of the people for the fixations of the other half."""
    one, other = halves(seed)
    maps, (density, own) = one[:, 0], other.unbind(1)
    scores = {
        "cc": cc(maps, density),
        "nss": nss(maps, own),
        "auc_judd": auc_judd(maps, own),
        "auc_shuffled": auc_shuffled(maps, own, own.sum(0) - own),
        "kl": kl(maps, density),
    }
    return {name: float(values.mean()) for name, values in scores.items()}


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Measure one row; nothing is written to the folder."""
    data = photographs()
    return people(seed) if row == PEOPLE else measured(model_of(row, seed, data), data)


def model_of(row: str, seed: int, data: Data) -> nn.Module:
    """The trained network of a row, or its fixed map."""
    if row in ROWS:
        return trained(ROWS[row], seed, data)
    if row == "teacher":
        return teacher(data)
    maps = data.train.labels[:, 0]
    fixed = {
        "centred Gaussian": centre_prior(*maps.shape[1:]),
        "mean of the labelled maps": maps[drawn(seed, data)[:LABELLED]].mean(0),
        "mean of all maps": maps.mean(0),
    }
    return FixedMap(fixed[row])


EXPERIMENT = Experiment(
    name="fastsal_scenes",
    measure=run,
    rows=("plain", *FIXED, "teacher", *(row for row in ROWS if row != "plain")),
    columns={
        "cc": Column("CC", share=False, digits=3),
        "nss": Column("NSS", share=False, digits=3),
        "auc_judd": Column("AUC-Judd", share=False, digits=3),
        "auc_shuffled": Column("shuffled AUC", share=False, digits=3),
        "kl": Column("KL (lower is better)", share=False, digits=3),
    },
    baseline="plain",
    seeds=5,
    head="""
# Photographs with people's fixations (`fastsal`)

**Question.** Does a small saliency network that knows people's maps of few photographs gain from a teacher's maps of
others? [On synthetic scenes](fastsal.md) it does; here are 500 photographs with the fixations of up to twelve people
each (NUS Scene), 400 for training and 100 for testing, a fixed split.

**Data.** Photographs and fixations are scaled to 64 x 64 pixels. A map is the sum of Gaussians of 2.1 pixels around the
fixations of all people. CC and KL compare with this map, NSS and the areas use the fixations themselves.

**Networks.** FastSal starts from an encoder of ImageNet. From random weights, `fastsal-ax0.25` hardly exceeded the mean
map in first trials (a CC of 0.572 against 0.569 on held-out photographs, with people's maps of 320 others and 480 steps
on batches of 8; not in the raw results). So student and teacher start from ResNets of CIFAR-10, ResNet-20 and
ResNet-56, which stay frozen; four blocks of a 3x3 convolution each, 8 channels wide in the student and 32 in the
teacher, merge their features into a map. The teacher learns the maps of all 400 photographs (6 epochs of batches of 8):
*its maps of the photographs that are unlabelled for the student are those of a network that has seen people's maps of
them*, which a teacher from another data set has not.

**Rows.** Each student takes 150 steps of Adam on batches of 16, with a cosine schedule and mirrored photographs, 6
epochs of all or 50 of the labelled ones. Each seed draws the 48 labelled photographs; rows of one seed share them and
the initial weights.

- *plain* learns from the 48 maps alone, *plain, all maps* from all 400: the positive control.
- *fastsal* learns from the 48 maps and the teacher's 400 (`hint_share=0`), in *hints* after a first stage of half of
  the epochs in which its blocks predict those of the teacher; in *density*, the second stage is that of `loss=density`,
  which reads no people's maps. The schedule is that of the other rows (`schedule=recipe`).
- *Centred Gaussian*, *mean of the labelled maps*, *mean of all maps*: the same map for each photograph.
- *Half of the people*: their map for the fixations of the other half, halves drawn for each photograph. Its CC and KL
  compare with a map of half as many fixations, which makes them worse.

**Learning rates** were selected by CC on 80 training photographs that neither student nor teacher saw, with one other
seed (`python -m experiments.fastsal_scenes_tuning`): 0.1 for *plain*, of 0.003, 0.01, 0.03 and 0.1; 0.01 for *fastsal*,
of 0.01 and 0.03; one trial each of *plain, all maps* (0.01) and *density* (0.03), none of *hints* (0.01).
""",
    tail="""
## What it shows

- The positive control works, if not after the correction for several comparisons: the maps of all 400 photographs raise
  the CC by 0.049 ± 0.041, and the teacher is better than *plain* by 0.090 ± 0.021.
- **The teacher's maps help a student with few labelled photographs**: *fastsal* has a CC higher by 0.052 ± 0.036
  (significant before the correction), *density*, which reads no people's maps itself, by 0.051 ± 0.024 (significant
  after it). That is the lower end of the expected 0.05 to 0.2.
- **The gain is not one of shuffled AUC**: it is 0.62 for all networks (the teacher differs from *plain* by
  0.003 ± 0.008, *fastsal* by 0.002 ± 0.006), so that in which places a photograph attracts more people than other
  photographs do is learned from 48 maps as well, on pretrained features. The gain lies in the rest of the map, such as
  the weight of the centre: a fixed map, the mean of all, has a CC of 0.548 and a shuffled AUC of 0.50.
- **No gain by hints was found**: 0.022 ± 0.071, an interval that includes the gain of *fastsal*, too. Half of the steps
  go to the hints. *Density* has the same first stage; its rate of 0.03 was not tried for *hints*.

## What it does not show

- FastSal's own network from random weights, which learns too slowly for 400 photographs; MobileNetV2 with weights of
  ImageNet; images of the usual size; other teachers: all seeds have the same, and the intervals do not cover them.
- A teacher that has not seen people's maps of the student's unlabelled photographs.
- *Density* without hints, and *maps* at its rate: which of its two differences to *hints* matters.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
