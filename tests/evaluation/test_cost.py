"""Parameters and FLOPs worked out by hand; latency."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tutelage.evaluation import cost
from tutelage.models.networks.resnet import ResNet


def grey(*shape: int, count: int = 1) -> Tensor:
    return torch.full((count, *shape), 0.5)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4 * 6, 5))


def test_parameters_by_hand() -> None:
    assert cost.parameters(network()) == 8 * 3 * 9 + 2 * 8 + (8 * 4 * 6 * 5 + 5)


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 3)
    assert cost.parameters(nn.Sequential(layer, layer)) == 12


def test_flops_by_hand() -> None:
    """FLOPs are outputs x weights per output x 2: 8 maps of 4 x 6 pixels from 3 x 3 x 3, then 5 outputs from 192."""
    assert cost.flops(network(), grey(3, 6, 8)) == 2 * (8 * 4 * 6) * (3 * 9) + 2 * 5 * (8 * 4 * 6)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), 2 * (8 * 3 * 3) * (4 * 9)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), 2 * (4 * 6 * 6) * 9),
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 7)), 2 * 144 * 7),
        (nn.ReLU(), 0),
    ],
)
def test_flops_of_layers(layer: nn.Module, expected: int) -> None:
    assert cost.flops(layer, grey(4, 6, 6)) == expected


class Attention(nn.Module):
    """Self-attention with two heads over four positions of eight channels."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.layer = None if fused else nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.flatten(2).mT
        if self.layer is None:
            heads = tokens.view(1, 4, 2, 4).transpose(1, 2)
            return F.scaled_dot_product_attention(heads, heads, heads)
        return self.layer(tokens, tokens, tokens, need_weights=False)[0]


@pytest.mark.parametrize(("fused", "projections"), [(True, 0), (False, 2 * 4 * 8 * 32)])
def test_attention_products_are_counted(fused: bool, projections: int) -> None:
    """Two products of 4 x 4 x 4 per head; the counter of torch misses them on a CPU."""
    torch.backends.mha.set_fastpath_enabled(True)
    assert cost.flops(Attention(fused), grey(8, 2, 2)) == projections + 2 * 2 * (2 * 4 * 4 * 4)
    assert torch.backends.mha.get_fastpath_enabled()


def test_compiled_network_has_the_same_cost() -> None:
    model = network()
    expected = cost.flops(model, grey(3, 6, 8))
    assert cost.flops(torch.compile(model, backend="eager"), grey(3, 6, 8)) == expected


def test_latency_quartiles_are_ordered() -> None:
    latency = cost.latency(network(), grey(3, 6, 8, count=2), repeats=7)
    assert 0 < latency.first_quartile <= latency.median <= latency.third_quartile < 10_000


def test_latency_is_in_milliseconds_and_excludes_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake clock that each forward pass advances: one minute during warm-up, then 1, 2, 3, 4 and 5 ms."""
    durations = iter([60.0] * cost.WARM_UP + [0.004, 0.001, 0.005, 0.003, 0.002])
    time = 0.0
    shapes = []

    class Timed(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            nonlocal time
            time += next(durations)
            shapes.append(tuple(inputs.shape))
            return inputs

    monkeypatch.setattr(cost.time, "perf_counter", lambda: time)
    latency = cost.latency(Timed(), grey(3, 6, 8, count=2), repeats=5)
    assert (latency.first_quartile, latency.median, latency.third_quartile) == pytest.approx((2, 3, 4))
    assert shapes == [(2, 3, 6, 8)] * (cost.WARM_UP + 5)


@pytest.mark.parametrize("measure", [cost.flops, cost.latency])
def test_model_is_unchanged(measure: object) -> None:
    assert callable(measure)
    model = network().train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    state, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    measure(model, grey(3, 6, 8))
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("invalid", [{"count": 0}, {"repeats": 0}])
def test_latency_without_images_or_repeats_is_refused(invalid: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"got .*0"):
        cost.latency(network(), grey(3, 6, 8, count=invalid.get("count", 1)), repeats=invalid.get("repeats", 1))


class Products(nn.Module):
    """Operations that torch decomposes into other operations."""

    def forward(self, inputs: Tensor) -> Tensor:
        products = torch.einsum("bi,bj->ij", inputs, inputs)
        attention = nn.functional.scaled_dot_product_attention(*(products[None, None],) * 3)
        return nn.functional.conv_transpose1d(attention[0], torch.ones(4, 2, 3))


COUNTED: dict[str, tuple[nn.Module, Tensor]] = {
    "convolutions": (ResNet(8, width=0.25), torch.zeros(1, 3, 8, 8)),
    "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(1, 5, 8)),
    "recurrence": (nn.GRU(4, 6, batch_first=True), torch.zeros(1, 5, 4)),
    "products": (Products(), torch.zeros(3, 4)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counter_without_the_compiler_equals_that_of_torch(name: str) -> None:
    model, example = COUNTED[name]
    fallback, reference = cost._Counter(), FlopCounterMode(display=False)
    for counter in (fallback, reference):
        with torch.no_grad(), counter:
            model.eval()(example)
    assert fallback.get_total_flops() == reference.get_total_flops()


def test_networks_are_built_and_counted_without_importing_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from tutelage.evaluation import flops\n"
        "from tutelage.models import zoo\n"
        "for name in ('resnet8', 'wrn-10-1', 'mobilenetv2x0.5', 'dcganx0.125', 'mlp-ganx0.125'):\n"
        "    network = zoo.build(name, num_classes=10, input_shape=(1, 8, 8))\n"
        "    size = getattr(network, 'latent', None)\n"
        "    assert flops(network, torch.zeros(1, size) if size else torch.zeros(1, 1, 8, 8)) > 0\n"
        "print('torch._dynamo' in sys.modules, 'sympy' in sys.modules)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "False"]


class Skips(nn.Module):
    """Runs its second layer for bright images only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.first(inputs.flatten(1))
        rows = (inputs.flatten(1).mean(1) > 0.5).nonzero()[:, 0]
        return x.index_add(0, rows, self.second(x[rows])) if len(rows) else x


def test_operations_that_depend_on_the_input_are_averaged_over_samples() -> None:
    brightness = torch.tensor([0.1, 0.9, 0.9, 0.2, 0.8, 0.3, 0.7, 0.6, 0.9, 0.9])
    samples = brightness[:, None, None, None].expand(10, 1, 2, 2)
    result = cost.cost_of(Skips(), grey(1, 2, 2), samples)
    assert result["flops"] == round((3 * 32 + 7 * 64) / 10)
    assert result["flops_range"] == [32, 64]
    assert result["flops_samples"] == 10
    assert result["latency_ms"] > 0


def test_samples_change_nothing_for_a_network_whose_operations_are_constant() -> None:
    samples = torch.rand(10, 3, 6, 8)
    plain, measured = (cost.cost_of(network(), grey(3, 6, 8), part) for part in (None, samples))
    assert plain.keys() == measured.keys()
    assert plain["flops"] == measured["flops"]
