"""Networks, random images and the reference training loops of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tutelage.config import Hardware
from tutelage.data import CropsAndFlips, Data, Split
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.training.hardware import autocast, place, resolve

TEMPERATURE, ALPHA = 4.0, 0.9
PAIRS = (("wrn-40-2", "wrn-16-2"), ("resnet56", "resnet20"))
SMALL = (("resnet14x0.5", "resnet8x0.5"),)
BATCH = 64


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device(resolve(Hardware()).device)


def sizes() -> tuple[int, ...]:
    """Batch sizes of the benchmarks of single steps."""
    return (BATCH,) if device().type == "cpu" else (128, 512)


def steps_per_round() -> int:
    """Steps timed at once: several on a GPU, which executes them asynchronously."""
    return 1 if device().type == "cpu" else 10


def title(pair: tuple[str, str], size: int = BATCH) -> str:
    """Teacher and student, and the batch size if it is not ``BATCH``."""
    return " teaches ".join(pair) + (f", batches of {size}" if size != BATCH else "")


def random_images(samples: int, side: int = 32, classes: int = 10, views: int | None = None) -> Data:
    """Random images in the shape of CIFAR-10; their content does not influence speed."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, side, side, 3), generator=generator, dtype=torch.uint8)
    labels = torch.arange(samples) % classes
    part = Split.of(images, labels)
    names = tuple(str(number) for number in range(classes))
    return Data(
        "noise", names, part, part.subset(torch.arange(classes)), None, CropsAndFlips(pad=4, flip=True, limit=views)
    )


def network(name: str, data: Data, seed: int = 0) -> Tapped:
    """A network for these images, with weights from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tapped(
            make_model(name, num_classes=data.num_classes, input_shape=data.image_shape).module, *data.mean_std
        )


def to_hardware(net: Tapped, data: Data, hardware: Hardware) -> Tapped:
    """Move a network to the device and memory format."""
    place(net, hardware=hardware, example=data.modality.example(2, data.input_shape))
    return net


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Hinton's loss as research code writes it."""
    soft = F.kl_div((student / TEMPERATURE).log_softmax(1), (teacher / TEMPERATURE).softmax(1), reduction="batchmean")
    return (1 - ALPHA) * F.cross_entropy(student, labels) + ALPHA * TEMPERATURE**2 * soft


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the study."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def bare_steps(
    student: nn.Module,
    teacher: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    end_step: Callable[[], None],
    *,
    hardware: Hardware,
    teacher_first: bool = True,
) -> None:
    """Distil in a bare loop: forward passes, backward pass and optimizer step, nothing else."""
    updates = optimizer(student)
    student.train()
    teacher.eval()
    for images, labels in cycle(batches):
        with autocast(hardware):
            logits = None if teacher_first else student(images)
            with torch.no_grad():
                targets = teacher(images)
            logits = student(images) if logits is None else logits
        loss = distillation_loss(logits.float(), targets.float(), labels)
        updates.zero_grad(set_to_none=True)
        loss.backward()
        updates.step()
        end_step()


class PILImages(Dataset[tuple[Tensor, int]]):
    """Images through PIL, one at a time: pad, crop, flip, convert to float, normalize."""

    def __init__(self, data: Data) -> None:
        self.pad, self.flip = data.views.pad, data.views.flip
        images = data.train.inputs
        assert isinstance(images, Tensor)
        self.images: NDArray[np.uint8] = images.numpy()
        self.labels = data.train.labels.tolist()
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in data.mean_std)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        side, channels = self.images.shape[1], self.images.shape[3]
        image = Image.fromarray(self.images[index].squeeze())
        image = ImageOps.expand(image, self.pad)
        left, top = (int(torch.randint(2 * self.pad + 1, (1,))) for _ in range(2))
        image = image.crop((left, top, left + side, top + side))
        if self.flip and torch.rand(1) < 0.5:
            image = ImageOps.mirror(image)
        array = np.array(image).reshape(side, side, channels)
        pixels = torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div(255)
        return (pixels - self.mean) / self.std, self.labels[index]


def research_loop(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    batch_size: int,
    workers: int,
    updates: torch.optim.Optimizer | None = None,
) -> float:
    """Train for an epoch like research code: float32, NCHW, one image at a time, ``loss.item()`` in each step."""
    device = next(student.parameters()).device
    loader = DataLoader(PILImages(data), batch_size, shuffle=True, num_workers=workers, drop_last=True)
    updates = updates or optimizer(student)
    student.train()
    teacher.eval()
    total, correct, count = 0.0, 0.0, 0
    for batch in loader:
        images, labels = (values.to(device) for values in batch)
        with torch.no_grad():
            targets = teacher(images)
        logits = student(images)
        loss = distillation_loss(logits, targets, labels)
        updates.zero_grad()
        loss.backward()
        updates.step()
        total += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).float().sum().item()
        count += len(labels)
    return total / count + correct


def make_batches(data: Data, batch_size: int, steps: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Batches on the device, for the bare loop."""
    return [(images.to(device), labels.to(device)) for images, labels in _batches(data, batch_size, steps)]


def _batches(data: Data, batch_size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    images = data.train.inputs
    assert isinstance(images, Tensor)
    for number in range(steps):
        rows = torch.arange(number * batch_size, (number + 1) * batch_size) % len(images)
        pixels = images[rows].permute(0, 3, 1, 2).float() / 255
        yield pixels.contiguous(memory_format=torch.channels_last), data.train.labels[rows]
