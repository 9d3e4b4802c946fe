"""Training in several processes equals training in one process on the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.data import Data
from tutelage.data.loader import Batches
from tutelage.training.processes import Processes

SCRIPT = textwrap.dedent(
    """
    import atexit, json, os, shutil, sys
    from pathlib import Path
    import torch
    from torch import nn
    import tutelage
    from tutelage.data import Data, Split, CropsAndFlips
    from tutelage.training.gradient_messages import averaged_gradients
    from tutelage.training.processes import Processes

    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), int(os.environ.get("RANK", "0"))

    @atexit.register  # the first function that is registered is the last one that runs
    def note_end():
        (out / f"member{rank}.json").write_text(json.dumps(torch.distributed.is_initialized()))

    generator = torch.Generator().manual_seed(0)

    def split(size):
        images = torch.randint(256, (size, 8, 8, 1), generator=generator, dtype=torch.uint8)
        return Split.of(images, torch.arange(size) % 4)

    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 4),
        )

    data = Data("made", tuple("abcd"), split(50), split(8), split(12), CropsAndFlips(pad=1))
    results = {}

    def train(method, folder):
        common = dict(data=data, out=out / folder, epochs=4, batch_size=16, lr=0.02, seed=5)
        common |= dict(device="cpu", precision="float32")
        if method == "hinton":
            return tutelage.distill(net(1).eval(), net(2), method=method, **common)
        return tutelage.train(net(2), method=method, **common)

    for method in ("plain", "hinton", "dml"):
        result = train(method, method)
        results[method] = {
            "history": len(result.history),
            "metrics": sorted(result.metrics),
            "weights": [value.double().sum().item() for value in result.model.module.state_dict().values()],
        }
    processes = Processes.current("cpu")
    if processes.world > 1:  # other samples in each process, in one message for each weight
        model, inputs = net(3), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(rank))
        weights = list(model.parameters())
        expected = torch.autograd.grad(model(inputs).square().sum(), weights)
        with averaged_gradients(weights, processes.world, message_bytes=1):
            model(inputs).square().sum().backward()
        results["gradients"] = [
            torch.allclose(weight.grad, processes.mean(gradient), rtol=1e-5, atol=1e-6)
            for weight, gradient in zip(weights, expected)
        ]
    if rank == 0:  # make the folder of a run that was killed in its last epoch
        shutil.copytree(out / "dml", out / "resumed")
        for name in ("result.json", "student.safetensors", "checkpoints/fit-00-epoch-00004.ckpt"):
            (out / "resumed" / name).unlink()
    processes.wait()
    train("dml", "resumed")
    (out / f"rank{rank}.json").write_text(json.dumps({"world": processes.world, **results}))
    """
)


def run(command: list[str], folder: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    folder.mkdir()
    process = subprocess.run(
        [*command, str(folder)],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::FutureWarning"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.timeout(320)
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """One test of several properties, because starting processes takes most of the time."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # Not accelerate launch --cpu, which always starts one process.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    single_folder, pair_folder = tmp_path / "one", tmp_path / "two"
    run([sys.executable, str(script)], single_folder)
    run([*launch, str(script)], pair_folder)

    first, second = (json.loads((pair_folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert (first["world"], second["world"]) == (2, 2)
    assert [(pair_folder / f"member{rank}.json").read_text() for rank in (0, 1)] == ["false", "false"]
    assert first["gradients"] == second["gradients"] == [True] * 9
    for method in ("plain", "hinton", "dml"):
        student, distributed = (
            load_file(folder / method / "student.safetensors") for folder in (single_folder, pair_folder)
        )
        assert student.keys() == distributed.keys()
        for name, value in student.items():
            torch.testing.assert_close(distributed[name], value, rtol=1e-3, atol=1e-4, msg=f"{method}: {name}")
        lines = [
            (folder / method / "metrics.jsonl").read_text().splitlines() for folder in (single_folder, pair_folder)
        ]
        for line, other in zip(*lines, strict=True):
            assert json.loads(other)["forward_passes"] == json.loads(line)["forward_passes"]
            for learner, entry in json.loads(line)["learners"].items():
                assert json.loads(other)["learners"][learner] == pytest.approx(entry, rel=1e-3, abs=1e-3)
        # Only the first process evaluates and writes files; all have the same student.
        assert len(lines[1]) == first[method]["history"] == 4
        assert "test" in first[method]["metrics"]
        assert (second[method]["history"], second[method]["metrics"]) == (0, [])
        assert second[method]["weights"] == first[method]["weights"]
    for folder in (single_folder, pair_folder):  # resumed after the kill
        assert (folder / "dml" / "student.safetensors").read_bytes() == (
            folder / "resumed" / "student.safetensors"
        ).read_bytes()


# --- one process


def test_single_process_has_no_communication() -> None:
    processes = Processes()
    assert processes.main
    tensor = torch.tensor([1.0, float("nan")])
    assert processes.mean(tensor) is tensor
    assert processes.total(3, 0) == [3, 0]
    processes.wait()
    model = nn.BatchNorm2d(3)
    with processes.shared_statistics(model):
        assert type(model) is nn.BatchNorm2d
    weight = nn.Parameter(torch.ones(2))
    with processes.averaged_gradients([weight]):
        torch.autograd.backward(weight.sum())
    torch.testing.assert_close(weight.grad, torch.ones(2))


def test_current_is_a_single_process_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Processes.current("cpu") == Processes()


@pytest.mark.parametrize("value", ["", "  ", "1"])
def test_current_is_a_single_process_if_world_size_is_empty_or_1(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    assert Processes.current("cpu") == Processes()


@pytest.fixture
def restored_environment() -> Iterator[None]:
    """Restore all environment variables: accelerate sets LOCAL_RANK, LOCAL_WORLD_SIZE and MASTER_PORT itself."""
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.usefixtures("restored_environment")
@pytest.mark.parametrize(
    ("variables", "fragments"),
    [
        ({"WORLD_SIZE": "x"}, ("WORLD_SIZE is 'x'", "a whole number from 1")),
        ({"WORLD_SIZE": "0"}, ("WORLD_SIZE is '0'",)),
        ({"WORLD_SIZE": "2.5"}, ("WORLD_SIZE is '2.5'",)),
        ({"WORLD_SIZE": "9" * 5000}, ("WORLD_SIZE is '999",)),
        ({"WORLD_SIZE": "2"}, ("WORLD_SIZE is 2", "RANK is None")),
        ({"WORLD_SIZE": "2", "RANK": ""}, ("RANK is ''",)),
        ({"WORLD_SIZE": "2", "RANK": "2"}, ("RANK is '2'",)),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "x"}, ("LOCAL_RANK is 'x'",)),
        ({"WORLD_SIZE": "2", "RANK": "0"}, ("cannot join the 2 processes", "MASTER_ADDR")),
    ],
)
def test_invalid_environment_variables_of_a_launcher_are_refused(
    variables: dict[str, str],
    fragments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., AbstractContextManager[None]],
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(PartialState, "_shared_state", {})  # other tests may have initialised this singleton
    with refused(*fragments, "or unset WORLD_SIZE"):
        Processes.current("cpu")


def test_shards_of_a_batch_add_up_to_the_batch(tiny_data: Data) -> None:
    batch = next(iter(Batches(tiny_data.train, batch_size=16, views=tiny_data.views, seed=1).epoch(2)))
    shards = [
        next(iter(Batches(tiny_data.train, batch_size=16, views=tiny_data.views, seed=1, rank=r, world=2).epoch(2)))
        for r in (0, 1)
    ]
    assert sorted(torch.cat([shard.index for shard in shards]).tolist()) == sorted(batch.index.tolist())
    assert torch.equal(shards[0].inputs, batch.inputs[0::2])
    assert torch.equal(shards[1].inputs, batch.inputs[1::2])


class BlockError(RuntimeError):
    """An error within the block."""


@pytest.mark.parametrize("fails", [False, True])
def test_shared_statistics_restore_the_class_of_every_layer(fails: bool) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()), nn.BatchNorm3d(2))
    classes = [type(module) for module in model.modules()]
    names = list(model.state_dict())
    try:
        with Processes(rank=0, world=2).shared_statistics(model):
            within = [type(module) for module in model.modules()]
            assert list(model.state_dict()) == names
            if fails:
                raise BlockError
    except BlockError:
        assert fails
    assert [type(module) for module in model.modules()] == classes
    assert [a is not b for a, b in zip(within, classes, strict=True)] == [
        c.__name__.startswith("BatchN") for c in classes
    ]


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone, in which a sum over processes changes nothing."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (6, 3)),
        (nn.BatchNorm1d, (6, 3, 5)),
        (nn.BatchNorm2d, (4, 3, 5, 2)),
        (nn.BatchNorm3d, (2, 3, 2, 2, 2)),
    ],
)
def test_shared_batch_normalisation_equals_batch_normalisation(
    kind: Any, shape: tuple[int, ...], options: dict[str, Any], training: bool
) -> None:
    torch.manual_seed(0)
    layer, reference = kind(3, **options).train(training), kind(3, **options).train(training)
    for module in (layer, reference):
        for number, parameter in enumerate(module.parameters()):
            nn.init.constant_(parameter, 0.5 + number)
    for _ in range(2):  # the second pass starts from updated running statistics
        inputs: list[Tensor] = [(3 + 2 * torch.randn(shape)).requires_grad_()]
        inputs.append(inputs[0].detach().clone().requires_grad_())
        with Processes(rank=0, world=2).shared_statistics(layer):
            outputs = [layer(inputs[0]), reference(inputs[1])]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
        for output in outputs:
            output.pow(3).sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)
        for a, b in zip(layer.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
        for a, b in zip(layer.buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("group")
def test_shared_batch_normalisation_under_autocast_keeps_its_dtype() -> None:
    layer = nn.BatchNorm2d(3)
    with Processes(rank=0, world=2).shared_statistics(layer):
        normalized = layer(torch.randn(4, 3, 2, 2, dtype=torch.bfloat16))
    assert normalized.dtype == torch.bfloat16
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float32


def test_indivisible_batch_size_is_refused(tiny_data: Data, refused: Any) -> None:
    with refused("multiple of the 2 processes", "15"):
        Batches(tiny_data.train, batch_size=15, rank=0, world=2)
