"""What many tests share: tiny data, tiny networks, and a few ways to look at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split, Views
from tutelage.errors import TutelageError
from tutelage.models.tapped import Tapped

torch.set_num_threads(1)  # tests run beside each other, and threads that wait for a busy core spin

State = dict[str, Tensor]


class TinyNet(nn.Module):
    """Two convolutions with batch normalisation, two resolutions, dropout where it is asked for."""

    def __init__(self, classes: int = 4, width: int = 4, channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return logits


@pytest.fixture
def tiny_data() -> Data:
    """48 training, 16 held-out and 16 test images, grey 8x8, of four classes that can be told: a bright quarter."""
    generator = torch.Generator().manual_seed(7)

    def part(size: int) -> Split:
        labels = torch.arange(size) % 4
        images = torch.randint(120, (size, 8, 8, 1), generator=generator, dtype=torch.uint8)
        for sample, label in enumerate(labels.tolist()):
            top, left = 4 * (label // 2), 4 * (label % 2)
            images[sample, top : top + 4, left : left + 4] += 90
        return Split.of(images, labels)

    return Data("tiny", ("a", "b", "c", "d"), part(48), part(16), part(16), Views(pad=1))


@pytest.fixture
def tiny_model(tiny_data: Data) -> Callable[..., Tapped]:
    """``tiny_model(seed=0, width=4, classes=4, channels=1, dropout=0.0)``: two stages and an embedding."""

    def make(seed: int = 0, **options: float) -> Tapped:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Tapped(TinyNet(**options), *tiny_data.mean_std)  # type: ignore[arg-type]

    return make


@pytest.fixture
def on_cpu() -> Hardware:
    """What every test trains on."""
    return Hardware(device="cpu", precision="float32", channels_last=False, workers=0)


@pytest.fixture
def short() -> Recipe:
    """Two epochs of three steps on ``tiny_data``."""
    return Recipe(epochs=2, batch_size=16, lr=0.05)


Refused = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def refused() -> Refused:
    """The block must end in an error of one line with every one of these pieces in it."""

    @contextmanager
    def check(*pieces: object) -> Iterator[None]:
        with pytest.raises(TutelageError) as caught:
            yield
        text = str(caught.value)
        assert len(text.splitlines()) == 1, text
        for piece in pieces:
            assert str(piece) in text, f"{piece!r} is not in: {text}"

    return check


@pytest.fixture
def state_of() -> Callable[[nn.Module], State]:
    """A copy of every parameter and buffer, those outside the state_dict included."""

    def copy(module: nn.Module) -> State:
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        return {name: value.detach().clone() for name, value in named}

    return copy


@pytest.fixture
def changed() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], set[str]]:
    """The names under which two states differ in any bit (a NaN equals itself)."""

    def names(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
        assert before.keys() == after.keys()
        return {name for name in before if not torch.equal(_bits(before[name]), _bits(after[name]))}

    return names


def _bits(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8)


@pytest.fixture
def soft(tiny_data: Data) -> Data:
    """``tiny_data`` with soft training labels."""
    labels = F.one_hot(tiny_data.train.labels, 4).float() * 0.8 + 0.05
    return replace(tiny_data, train=replace(tiny_data.train, labels=labels))
