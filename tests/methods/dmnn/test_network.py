"""The family dmnn: paths, gates, executed operations, roles, and ONNX."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.evaluation.cost import flops
from tutelage.methods.dmnn.networks.dmnn import DMNN, path_width
from tutelage.models.export import export_onnx
from tutelage.models.modes import eval_mode
from tutelage.models.tapped import Tapped

GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.rand(6, 1, 8, 8, generator=GENERATOR) * torch.linspace(0.1, 4, 6)[:, None, None, None]


def network(paths: int = 2, width: float = 0.25) -> DMNN:
    """With gates of both values, and running statistics other than the initial ones."""
    torch.manual_seed(paths)
    model = DMNN(11, 4, 1, (1, 8, 8), width, paths)
    for controller in model.controllers:
        nn.init.normal_(controller.gate.weight, std=20)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(controller.gate.bias)  # type: ignore[union-attr, arg-type]
    for _ in range(10):
        model.train()(torch.rand(32, 1, 8, 8) * torch.linspace(0.1, 4, 32)[:, None, None, None])
    return model.eval()


def with_pattern(model: DMNN, pattern: tuple[int, ...]) -> DMNN:
    """A copy whose gates are constant."""
    model = copy.deepcopy(model)
    paths = len(pattern) // len(model.controllers)
    for number, controller in enumerate(model.controllers):
        logits = torch.tensor(pattern[number * paths : (number + 1) * paths]) * 2.0 - 1
        nn.init.zeros_(controller.gate.weight)  # type: ignore[union-attr, arg-type]
        controller.gate.bias.data.copy_(logits)  # type: ignore[union-attr]
    return model


def all_patterns(count: int) -> list[tuple[int, ...]]:
    return [tuple(number >> place & 1 for place in range(count)) for number in range(2**count)]


def by_definition(model: DMNN, images: Tensor, pattern: tuple[int, ...]) -> Tensor:
    """The logits with x_l+1 = ReLU(s(x_l) + sum_n g_ln F_ln(x_l)) for constant gates."""
    x, gates = F.relu(model.bn1(model.conv1(images))), list(pattern)
    for block in model.blocks:
        out = block.shortcut(x)  # type: ignore[operator]
        for path in block.paths:  # type: ignore[union-attr]
            if gates.pop(0):
                out = out + path(x)
        x = F.relu(out)
    logits: Tensor = model.fc(x.mean((2, 3)))
    return logits


def test_each_pattern_of_gates_gives_the_sum_of_its_paths() -> None:
    model = network()
    with torch.no_grad():
        for pattern in all_patterns(6):
            constant = with_pattern(model, pattern)
            expected = by_definition(model, IMAGES, pattern)
            torch.testing.assert_close(constant(IMAGES), expected, rtol=0, atol=1e-6)
            constant.masked = True
            torch.testing.assert_close(constant(IMAGES), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("paths", [1, 2, 4])
def test_executed_paths_give_what_masked_ones_give(paths: int) -> None:
    model = network(paths)
    with torch.no_grad():
        gates = Tapped(model).tap(IMAGES, ("gates",))["gates"]
        executed = model(IMAGES)
        model.masked = True
        torch.testing.assert_close(executed, model(IMAGES), rtol=0, atol=1e-6)
        one_by_one = torch.cat([model(image[None]) for image in IMAGES])
    torch.testing.assert_close(executed, one_by_one, rtol=0, atol=1e-6)
    assert 0 < float(gates.mean()) < 1
    assert len({tuple(row) for row in gates.tolist()}) > 1


def test_closed_paths_do_not_run() -> None:
    model = network()
    rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if name.endswith(("paths.0", "paths.1")):
            module.register_forward_pre_hook(lambda _m, inputs, name=name: rows.update({name: len(inputs[0])}))
    with torch.no_grad():
        gates = Tapped(model).tap(IMAGES, ("gates",))["gates"]
    counts = gates.sum(0).tolist()
    names = [f"blocks.{block}.paths.{path}" for block in range(3) for path in range(2)]
    assert rows == {name: count for name, count in zip(names, counts, strict=True) if count}


@pytest.mark.parametrize("shape", [(8, 8), (7, 9)])
def test_counted_operations_are_those_of_open_paths_and_a_fixed_cost(shape: tuple[int, int]) -> None:
    model = DMNN(20, 4, 1, (1, *shape), 0.25).eval()
    image = torch.rand(1, 1, *shape)
    count = len(model.path_flops)
    assert count == 12
    fixed = flops(with_pattern(model, (0,) * count), image)
    for seed in range(3):
        pattern = tuple(torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed)).tolist())
        paths = sum(cost for cost, gate in zip(model.path_flops, pattern, strict=True) if gate)
        assert flops(with_pattern(model, pattern), image) == fixed + paths


def test_controllers_are_cheap() -> None:
    model = DMNN(20)
    image = torch.rand(1, 3, 32, 32)
    whole = flops(with_pattern(model, (1,) * 12), image)
    assert sum(2 * p.numel() for p in model.controllers.parameters()) < 0.001 * whole
    assert sum(p.numel() for p in model.controllers.parameters()) < 0.04 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("paths", [1, 2, 4])
@pytest.mark.parametrize("width", [16, 32, 64, 256])
def test_divided_blocks_have_the_parameters_of_undivided_ones(paths: int, width: int) -> None:
    channels, inner = 4 * width, path_width(width, paths)
    divided, whole = paths * (2 * channels * inner + 9 * inner**2), 2 * channels * width + 9 * width**2
    assert divided == pytest.approx(whole, rel=0.04)
    if paths == 2:
        assert inner == round(0.6242 * width)


def test_a_state_depends_on_the_one_before_and_starts_at_0() -> None:
    model = network()
    first, second = model.controllers[0], model.controllers[1]
    features, state = torch.rand(3, 4, 8, 8), torch.zeros(3, model.state_size, requires_grad=True)
    logits, _ = first(features, state)
    (jacobian,) = torch.autograd.grad(logits.sum(), state)
    assert jacobian.any()
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1].clone()))
    second.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1].clone()))
    with torch.no_grad():
        model(IMAGES)
        model(IMAGES)
    assert not seen[0].any()
    assert not seen[2].any()
    assert seen[1].any()


def test_a_samples_gates_do_not_depend_on_the_others() -> None:
    model = Tapped(network())
    with torch.no_grad():
        together = model.tap(IMAGES, ("gate_logits",))["gate_logits"]
        alone = torch.cat([model.tap(image[None], ("gate_logits",))["gate_logits"] for image in IMAGES])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_gates_start_open_mostly() -> None:
    torch.manual_seed(0)
    model = Tapped(DMNN(20, 4, 1, (1, 8, 8), 0.5).train())
    with torch.no_grad():
        assert 0.7 < float(model.tap(torch.rand(64, 1, 8, 8), ("gates",))["gates"].mean()) < 0.95


def test_the_label_loss_reaches_the_controllers() -> None:
    model = network().train()
    torch.manual_seed(1)
    F.cross_entropy(model(IMAGES), torch.arange(6) % 4).backward()
    for controller in model.controllers:
        assert controller.gate.weight.grad.any()  # type: ignore[union-attr]
        assert controller.reduce.weight.grad.any()  # type: ignore[union-attr]


def test_roles_are_the_ends_of_stages() -> None:
    model = Tapped(DMNN(20, 4, 1, (1, 8, 8), 0.25)).eval()
    outputs = model.tap(IMAGES, ("stem", "stage1", "stage2", "stage3", "embedding", "gates", "states"))
    shapes = {role: tuple(value.shape[1:]) for role, value in outputs.features.items()}
    assert shapes == {
        "stem": (4, 8, 8),
        "stage1": (16, 8, 8),
        "stage2": (32, 4, 4),
        "stage3": (64, 2, 2),
        "embedding": (64,),
        "gates": (12,),
        "states": (6 * 8,),
    }


def test_onnx_export(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    model = Tapped(network())
    export_onnx(model, (1, 8, 8), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (logits,) = session.run(None, {"pixels": IMAGES[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(IMAGES[:count]).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "width", "paths"), [(20, 1, 2), (29, 0.5, 4), (11, 1, 1)])
def test_depth_counts_layers(depth: int, width: float, paths: int) -> None:
    model = DMNN(depth, width=width, paths=paths)
    per_block = [3] * len(model.blocks)
    assert 2 + sum(per_block) == depth
    assert model.conv1.out_channels == 16 * width
    assert model.fc.in_features == 4 * 64 * width
    assert math.prod((len(model.blocks), paths)) == len(model.path_flops)


@pytest.mark.parametrize(
    ("depth", "width", "paths", "pieces"),
    [(21, 1, 2, ("9n+2", "20 and 29")), (2, 1, 2, ("9n+2",)), (20, 0.3, 2, ("1/16",)), (20, 1, 0, ("paths",))],
)
def test_impossible_sizes_are_refused(
    depth: int, width: float, paths: int, pieces: tuple[str, ...], refused: Any
) -> None:
    with refused("DMNN", *pieces):
        DMNN(depth, width=width, paths=paths)


def test_masked_training_pass_equals_eval_of_the_same_gates_up_to_normalisation() -> None:
    """With all gates open, the train-mode pass is that of the undivided sum, with batch statistics."""
    model = network().train()
    model.gates.open.fill_(1)
    torch.testing.assert_close(model(IMAGES), by_definition(model, IMAGES, (1,) * 6), rtol=1e-4, atol=1e-5)
    with eval_mode(model):
        assert model(IMAGES).shape == (6, 4)
