"""Following an object in videos, relative to an epoch of training on as many frames."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.pairs import Numbers, Ratio, Rounds, as_json, compare, every
from benchmarks.setting import device, to_hardware
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split
from tutelage.data.frames import Frames
from tutelage.data.targets import Track
from tutelage.models import zoo
from tutelage.models.tapped import Tapped
from tutelage.tasks import Compute, find_task
from tutelage.training import Execution, Learner, Step, fit, together
from tutelage.training.hardware import autocast_dtype, resolve

NETWORKS = ("siamese32", "siamfc24")
VIDEOS, FRAMES, SIZE, BATCH = 16, 15, (120, 160), 32
EPOCH = "an epoch of training"


def tracking(short: bool) -> Numbers:
    """Scoring a tracker after an epoch, and its final evaluation, relative to an epoch of as many frames.

    Training cuts a template and a search crop from each frame, the tracker three search crops. The final evaluation is
    in float32.
    """
    return {name: as_json(_measured(name, short)) for name in NETWORKS}


def _measured(name: str, short: bool) -> dict[str, Ratio]:
    task, hardware = find_task("tracking"), resolve(Hardware(device=str(device())))
    search = 255 if name.startswith("siamfc") else 127
    data = random_videos(2 if short else VIDEOS, search)
    trained, evaluated = (to_hardware(tracker(name, data), data, hardware) for _ in range(2))
    scoring, final = Compute(device(), autocast_dtype(hardware), 0), Compute(device(), None, 0)
    epochs = Rounds(lambda end_round: train(trained, data, hardware, end_round))
    candidates: dict[str, Callable[[], object]] = {
        EPOCH: epochs,
        "the score of an epoch": lambda: task.score(evaluated, data.train, data, scoring),
        "the final evaluation": lambda: task.evaluate(evaluated, data.train, data, final),
    }
    ratios = compare(candidates, EPOCH, 1 if short else 7)
    epochs.end()
    return ratios


def train(network: Tapped, data: Data, hardware: Hardware, end_round: Callable[[], None]) -> None:
    """Train without end, in rounds of an epoch."""
    end_step = every(-(-len(data.train) // BATCH), end_round)

    def update(step: Step) -> None:
        together(step)
        end_step()

    recipe = Recipe(epochs=10**6, batch_size=BATCH, schedule="constant")
    terms = {"labels": find_task("tracking").label_loss()}
    fit(Learner(network, None, terms), data=data, recipe=recipe, execution=Execution.on(hardware), update=update)


def tracker(name: str, data: Data) -> Tapped:
    """A network with random weights."""
    return Tapped(zoo.build(name, num_classes=1, input_shape=data.input_shape, modality=data.modality), *data.mean_std)


def random_videos(videos: int, search: int) -> Data:
    """Noise with a box that moves to the right; the content does not influence speed."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (videos * FRAMES, *SIZE, 3), generator=generator, dtype=torch.uint8)
    number = torch.arange(videos).repeat_interleave(FRAMES).float()
    frame = torch.arange(FRAMES).repeat(videos).float()
    sides = torch.full_like(frame, 24.0)
    labels = torch.stack([number, frame, 20 + 3 * frame, sides, sides, sides], 1)
    split = Split.of(images, labels, Frames(search), Track())
    return Data("noise", ("object",), split, split, views=Frames(search).augmented(()))
