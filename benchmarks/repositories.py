"""The training loops of RepDistiller and torchdistill, from their own code."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.pairs import Numbers, as_json, compare
from benchmarks.runs import fit_variants
from benchmarks.setting import ALPHA, BATCH, PAIRS, TEMPERATURE, network, optimizer, random_images, title
from tutelage.data import Data
from tutelage.models.tapped import Tapped

WORKERS = 2


def repositories(short: bool) -> Numbers:
    """An epoch of ``fit`` relative to the loops of RepDistiller and torchdistill, with two workers each.

    Needs torchvision, torchdistill (1.1.5), and a checkout of RepDistiller in the folder that the environment variable
    REPDISTILLER names. A project that is not installed is left out. Everything else is as in ``research``.
    """
    steps, rounds = (2, 1) if short else (24, 5)
    if find_spec("torchvision") is None or not (_checkout() or find_spec("torchdistill")):
        return {
            "": {"left out": "torchvision is not installed, or neither RepDistiller (REPDISTILLER) nor torchdistill is"}
        }
    measured: Numbers = {}
    for names in PAIRS[1:] if short else PAIRS:
        data = random_images(steps * BATCH, views=1)
        make = partial(network if _checkout() is None else _from_repdistiller, data=data)
        projects = {"RepDistiller": repdistiller} if _checkout() else {}
        projects |= {"torchdistill": torchdistill} if find_spec("torchdistill") else {}
        loops = {name: loop(*(make(of).module for of in names), data) for name, loop in projects.items()}
        with fit_variants(names, data, make, compile_=not short) as variants:
            measured[title(names)] = as_json(compare(loops | variants, next(iter(loops)), rounds))
    return measured


def _checkout() -> Path | None:
    """The folder of RepDistiller, from which its modules can be imported; ``None`` without one."""
    folder = Path(os.environ.get("REPDISTILLER") or ".")
    if not (folder / "helper" / "loops.py").exists():
        return None
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder


def _from_repdistiller(name: str, data: Data) -> Tapped:
    from models import model_dict

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tapped(model_dict[name.replace("-", "_")](num_classes=data.num_classes), *data.mean_std)


class Indexed(Dataset[tuple[Any, int, int]]):
    """Images through torchvision's transforms, one at a time, with their indices, as RepDistiller needs them."""

    def __init__(self, data: Data) -> None:
        from torchvision import transforms

        images = data.train.inputs
        assert isinstance(images, Tensor)
        self.images, self.labels = images.numpy(), data.train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.image_shape[-1], padding=data.views.pad),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(*data.mean_std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index], index


class Plain(Indexed):
    """The same without indices, as torchdistill needs them."""

    def __getitem__(self, index: int) -> tuple[Any, int]:  # type: ignore[override]
        return super().__getitem__(index)[:2]


def repdistiller(teacher: nn.Module, student: nn.Module, data: Data) -> Callable[[], object]:
    """An epoch of RepDistiller's ``train_distill`` with its KL divergence."""
    from distiller_zoo import DistillKL
    from helper.loops import train_distill

    loader = DataLoader(Indexed(data), BATCH, shuffle=True, num_workers=WORKERS)
    criteria = nn.ModuleList([nn.CrossEntropyLoss(), DistillKL(TEMPERATURE), DistillKL(TEMPERATURE)])
    options = Namespace(distill="kd", gamma=1 - ALPHA, alpha=ALPHA, beta=0.0, print_freq=100)
    networks, updates = nn.ModuleList([student, teacher]), optimizer(student)

    def epoch() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train_distill(1, loader, networks, criteria, updates, options)

    return epoch


def torchdistill(teacher: nn.Module, student: nn.Module, data: Data) -> Callable[[], object]:
    """An epoch of torchdistill's distillation box, used as in its image classification example."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    both = {
        f"{side}_module_{field}": value
        for side in ("student", "teacher")
        for field, value in (("path", "."), ("io", "output"))
    }
    soft = {
        "key": "KDLoss",
        "kwargs": both | {"temperature": TEMPERATURE, "alpha": 1 - ALPHA, "reduction": "batchmean"},
    }
    loader = {
        "dataset_id": "train",
        "sampler": {"class_or_func": RandomSampler},
        "kwargs": {"batch_size": BATCH, "num_workers": WORKERS},
    }
    rule = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    config = {
        "num_epochs": 1000,
        "train_data_loader": loader,
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"requires_grad": True, "forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": rule},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": soft, "weight": 1.0}}}},
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    box = get_distillation_box(
        teacher.to(device), student.to(device), {"train": Plain(data)}, config, device, None, False, 1
    )

    def epoch() -> None:
        box.pre_epoch_process(epoch=0)
        log = MetricLogger(delimiter="  ")
        log.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        for images, labels, supplement in log.log_every(box.train_data_loader, 100, "Epoch"):
            loss = box.forward_process(images.to(device), labels.to(device), supplement)
            box.post_forward_process(loss=loss)
            log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        box.post_epoch_process()

    return epoch
