"""Trains every method on a simulated device, on machines that have no device but the processor.

``python -m tests.other_device METHOD ...`` trains each method (``METHOD+cache``: with cached teacher outputs). The
device's tensors lie in the processor's memory and are computed there. What a GPU refuses (tensors of two devices, a
generator of another device) is refused, and operations for which the host would wait for a GPU are recorded. Prints one
line of JSON per method: where a step waited, the error, and the largest difference between its weights and those
of training on the processor.

It runs in a process of its own, since torch cannot unregister a device.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.conftest import TinyNet
from tests.device_data import barcodes, data, masks, saliency_maps, texts
from tests.videos import square_videos
from tutelage.config import Hardware, Recipe
from tutelage.data.loader import Batches
from tutelage.methods import find
from tutelage.methods.barcode.networks.barcode import BarcodeNet
from tutelage.methods.dmnn.networks.dmnn import DMNN
from tutelage.methods.fastsal.networks.fastsal_a import FastSalA
from tutelage.methods.fastsal.networks.salgan import SalGAN
from tutelage.methods.nas_kd.networks.cells import Cells
from tutelage.methods.siamese_dlf.networks.siamese import build as siamese
from tutelage.methods.spikes.networks.snn import spiking_network
from tutelage.models.generator import Generator
from tutelage.models.networks.dcgan import DCGAN
from tutelage.models.networks.fpn import FPN
from tutelage.models.networks.resnet import ResNet
from tutelage.models.networks.textcnn import TextCNN
from tutelage.models.tapped import Tapped
from tutelage.sources import TeacherCache
from tutelage.training import Run
from tutelage.training.finite import FiniteChecks
from tutelage.training.loop import Loop
from tutelage.training.meter import Meter
from tutelage.training.selection import Selection

NAME = "simulated"
PROJECT = "src/tutelage/"
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
MOVES = ("_to_copy", "copy_", "_copy_from", "lift_fresh")


class Backend(_DummyBackendModule):
    """What torch requires of a device's backend."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=Backend())


class Watch:
    """Records where the host had to wait for the device, while it is switched on."""

    def __init__(self) -> None:
        self.on, self.seen = False, set[str]()

    def note(self, reason: str) -> None:
        if self.on:
            project_frames = [frame for frame in traceback.extract_stack() if PROJECT in frame.filename]
            self.seen.add(
                f"{reason}: {project_frames[-1].filename.rpartition(PROJECT)[2]}, line {project_frames[-1].lineno}"
                if project_frames
                else reason
            )

    @contextmanager
    def set(self, on: bool) -> Iterator[None]:
        before, self.on = self.on, on
        try:
            yield
        finally:
            self.on = before


watch = Watch()


class RemoteTensor(Tensor):
    """A tensor of the simulated device, around a tensor of the processor."""

    local_tensor: Tensor

    @staticmethod
    def __new__(cls, local_tensor: Tensor) -> RemoteTensor:
        self = Tensor._make_wrapper_subclass(
            cls,
            local_tensor.size(),
            strides=local_tensor.stride(),
            storage_offset=local_tensor.storage_offset(),
            dtype=local_tensor.dtype,
            layout=local_tensor.layout,
            device=torch.device(NAME, 0),
        )
        self.local_tensor = local_tensor
        return self

    def tolist(self) -> Any:
        watch.note("tolist")
        return self.local_tensor.detach().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor of another device has no numpy()")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.local_tensor.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def local_of(value: Any) -> Any:
    return value.local_tensor if isinstance(value, RemoteTensor) else value


def is_remote(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the processor with the checks of the simulated device."""
    name = func._schema.name.split("::")[1]
    flat, _ = tree_flatten((args, kwargs))
    remote_tensors = [value for value in flat if isinstance(value, RemoteTensor)]
    device = kwargs.get("device")
    if not remote_tensors and not is_remote(device):
        return func(*args, **kwargs)
    is_move = name in MOVES and any(isinstance(value, Tensor) and not isinstance(value, RemoteTensor) for value in flat)
    if is_move and not kwargs.get("non_blocking") and (is_remote(device) or name == "copy_"):
        watch.note(f"{name} from the host")
    if any(isinstance(value, torch.Generator) for value in flat):
        raise RuntimeError(f"{name}: a generator of the host for a tensor of another device")
    _check_devices(name, flat, remote_tensors)
    stays = (
        is_remote(device) if device is not None else name not in MOVES or isinstance((args or [None])[0], RemoteTensor)
    )
    if not stays:
        watch.note(f"{name} to the host")
    local_kwargs = dict(kwargs) | ({"device": torch.device("cpu")} if device is not None else {})
    local_result = func(*tree_map(local_of, args), **tree_map(local_of, local_kwargs))
    if name == "copy_":
        return args[0]
    if not stays:
        return local_result
    remote_by_id = {id(value.local_tensor): value for value in remote_tensors}
    out = tree_map(
        lambda t: remote_by_id[id(t)] if id(t) in remote_by_id else RemoteTensor(t) if isinstance(t, Tensor) else t,
        local_result,
    )
    aliases = remote_tensors and any(result.alias_info for result in func._schema.returns)
    return return_and_correct_aliasing(func, args, kwargs, out) if aliases else out


def _check_devices(name: str, flat: list[Any], remote_tensors: list[RemoteTensor]) -> None:
    if name in WAITS:
        watch.note(name)
    if name in INDEXED and any(value.dtype in (torch.bool, torch.uint8) for value in remote_tensors[1:]):
        watch.note(f"{name} by a mask")
    for value in flat if remote_tensors and name not in MOVES else ():
        if isinstance(value, Tensor) and not isinstance(value, RemoteTensor) and value.ndim:
            if name not in INDEXED:
                raise RuntimeError(f"{name}: tensors of two devices")
            watch.note(f"{name} by indices of the host")


class ComputeMode(TorchDispatchMode):
    """Operations with a device but without a tensor argument."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class CreationMode(TorchFunctionMode):
    """Tensors made of plain numbers, which torch does not dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        is_new_tensor = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if is_new_tensor and is_remote(kwargs.get("device")):
            watch.note("numbers of the host")
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


@torch.library.impl("aten::empty_strided", "PrivateUse1")
def empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return RemoteTensor(torch.empty_strided(size, stride, dtype=dtype))


@torch.library.impl("aten::_copy_from", "PrivateUse1")
def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    local_of(target).copy_(local_of(source))
    return target


def watch_steps_only() -> None:
    """Watch each epoch except its batch order, checks for NaN, means and evaluation."""

    def during(on: bool, owner: type, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def watched_function(*args: Any, **kwargs: Any) -> Any:
            with watch.set(on):
                return function(*args, **kwargs)

        setattr(owner, name, watched_function)

    during(True, Loop, "epoch")
    for name in ("losses", "weights"):
        during(False, FiniteChecks, name)
    during(False, Selection, "after_epoch")
    during(False, Meter, "means")
    during(False, Batches, "_plan_epoch")  # once an epoch


def train_weights(method: str, device: str, cache: Path | None = None) -> dict[str, Tensor]:
    """The weights of a student after training, on the processor."""
    own_data = {"barcode": barcodes, "cwd": masks, "siamese_dlf": square_videos, "nas_kd": texts}
    own_data["fastsal"] = saliency_maps
    training_data = own_data.get(method, data)()
    outputs = TeacherCache(cache, training_data) if cache else None

    def network(seed: int, width: int) -> Tapped:
        torch.manual_seed(seed)
        if method == "akdg":
            return Generator(DCGAN((1, 8, 8), 0.02 * width, latent=6))
        if method == "dmnn" and seed == 2:
            return Tapped(DMNN(11, 4, 1, (1, 8, 8), 0.25), *training_data.mean_std)
        if method == "spikes":
            return Tapped(spiking_network(4, (1, 8, 8), hidden=2 * width, steps=5))
        own_networks: dict[str, Callable[[], nn.Module]] = {
            **dict.fromkeys(("ghnd", "mi_pruning"), lambda: ResNet(8, 4, 1, 0.25)),
            "barcode": lambda: BarcodeNet(width // 2),
            "cwd": lambda: FPN(10, width / 32, 4, 1),
            "nas_kd": lambda: Cells(2, width, 4, 12, 0) if seed == 2 else TextCNN(2, width, 4, 12, 0),
            "fastsal": lambda: FastSalA((1, 8, 8), 0.25) if seed == 2 else SalGAN((1, 8, 8), 0.05),
            "siamese_dlf": lambda: siamese(width, 1),
        }
        return Tapped(own_networks.get(method, lambda: TinyNet(width=width))(), *training_data.mean_std)

    hardware = Hardware(device=device, precision="float32", channels_last=False, workers=0)
    recipe = Recipe(epochs=2, batch_size=16, lr=0.02)
    teachers = [network(1, 6)]
    settings: dict[str, Any] = {
        "akdg": {"critic_width": 0.1},
        "planting": {"planting_epochs": 2, "rounds": 1, "resource": "flops", "target": 0.9, "narrow": 0.4},
        "cwd": {"features": 1.0},
        "ghnd": {"lr": 1e-6},  # Adam divides by gradients, and so enlarges differences in the last digit of small ones
    }.get(method, {})
    run = Run(
        training_data, lambda: network(2, 4), teachers, recipe=recipe, hardware=hardware, seed=3, teacher_cache=outputs
    )
    student = find(method)(run, **settings)
    return {name: value.detach().cpu() for name, value in student.module.state_dict().items()}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    watch_steps_only()
    for method in sys.argv[1:]:
        name, _, with_cache = method.partition("+")
        record: dict[str, Any] = {"method": method, "error": None, "difference": None}
        try:
            with ComputeMode(), CreationMode(), TemporaryDirectory() as folder:
                cache = Path(folder) if with_cache else None
                if with_cache:  # filling the cache waits
                    train_weights(name, NAME, cache)
                watch.seen.clear()
                remote_weights = train_weights(name, NAME, cache)
            local_weights = train_weights(name, "cpu")
            record["difference"] = max(
                float((remote_weights[key].double() - local_weights[key].double()).abs().max()) for key in local_weights
            )
        except Exception as error:
            record["error"] = "".join(traceback.format_exception(error)[-2:])
        print(json.dumps(record | {"waits": sorted(watch.seen)}), flush=True)


if __name__ == "__main__":
    main()
