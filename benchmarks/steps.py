"""What a training step costs beside the networks' own work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pairs import Beat, InRounds, Numbers, as_json, compare, every, timed
from benchmarks.setting import (
    BATCH,
    PAIRS,
    SMALL,
    as_batches,
    bare_steps,
    device,
    named,
    network,
    pictures,
    placed,
    sizes,
    steps_a_round,
)
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.loader import Batches
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.training import Learner, fit
from tutelage.training.hardware import resolve


def fit_steps(student: Tapped, source: Frozen | None, data: Data, hardware: Hardware, size: int = BATCH) -> InRounds:
    """``fit`` as a user calls it, a step a round (see ``steps_a_round``)."""
    terms = {"ce": CrossEntropy()} if source is None else labels_and_soft_targets(0.9)
    recipe = Recipe(epochs=10**6, batch_size=size, schedule="constant")

    def work(end_round: Callable[[], None]) -> None:
        beat = Beat(every(steps_a_round(), end_round))
        fit(Learner(student, source, terms), data=data, recipe=recipe, hardware=hardware, seat=beat)

    return InRounds(work)


def overhead(short: bool) -> Numbers:
    """A step of ``fit`` beside a bare loop with the same forward, backward and optimiser step. Goal: at most 1.03.

    They take turns step by step. What an epoch adds once (means, a look at the weights) falls on every eighth. In the
    third way the teacher runs between the student's forward and backward.
    """
    return {named(names, size): _overhead(names, size, 2 if short else 80) for names, size in _settings(short)}


def _settings(short: bool) -> list[tuple[tuple[str, str], int]]:
    return [(names, size) for names in (SMALL if short else PAIRS) for size in (sizes()[:1] if short else sizes())]


def _overhead(names: tuple[str, str], size: int, rounds: int) -> Numbers:
    data, hardware = pictures(8 * size), resolve(Hardware())
    teacher, student = (placed(network(name, data), data, hardware) for name in names)
    batches = as_batches(data, size, 8, device())

    def bare(end_round: Callable[[], None], *, teacher_first: bool) -> None:
        end_step = every(steps_a_round(), end_round)
        bare_steps(student, teacher, batches, end_step, hardware=hardware, teacher_first=teacher_first)

    ways = {
        "bare loop": InRounds(partial(bare, teacher_first=True)),
        "fit": fit_steps(student, Frozen(teacher), data, Hardware(), size),
        "bare loop, student first": InRounds(partial(bare, teacher_first=False)),
    }
    return _in_turns(ways, "bare loop", rounds)


def _in_turns(ways: dict[str, InRounds], against: str, rounds: int) -> Numbers:
    try:
        return as_json(compare(ways, against, rounds))
    finally:
        for way in ways.values():
            way.end()


def precision(short: bool) -> Numbers:
    """A step in each precision and layout, beside torch's own default; on a GPU also in its ways of compiling."""
    return {named(names, size): _precision(names, size, short) for names, size in _settings(short)}


def _precision(names: tuple[str, str], size: int, short: bool) -> Numbers:
    asked = {
        f"{kind}, {'channels-last' if last else 'NCHW'}": Hardware(precision=kind, channels_last=last)
        for kind in ("float32", "bfloat16")
        for last in (False, True)
    }
    if device().type != "cpu" and not short:
        best = Hardware(precision="bfloat16", channels_last=True)
        asked |= {
            f"bfloat16, channels-last, compile={how}": best.replace(compile=how) for how in (True, "reduce-overhead")
        }
    data = pictures(8 * size)
    ways = {}
    for way, hardware in asked.items():
        teacher, student = (network(name, data) for name in names)
        ways[way] = fit_steps(student, Frozen(teacher), data, hardware, size)
    return _in_turns(ways, "float32, NCHW", 2 if short else 8)


def loader(short: bool) -> Numbers:
    """The batches alone, beside a training step without a teacher. Goal: at most 0.02."""
    rounds = 2 if short else 80
    data = pictures(8 * BATCH)

    def batches(end_round: Callable[[], None]) -> None:
        made = Batches(data.train, batch_size=BATCH, views=data.views, layout=torch.channels_last, device=device())
        end_step = every(steps_a_round(), end_round)
        for epoch in count():
            for _ in made.epoch(epoch):
                end_step()

    found: Numbers = {}
    for _, name in PAIRS[1:] if short else PAIRS:
        ways = {"fit, plain": fit_steps(network(name, data), None, data, Hardware()), "batches": InRounds(batches)}
        found[name] = _in_turns(ways, "fit, plain", rounds)
    return found


def floor(short: bool) -> Numbers:
    """What of a pass is convolutions, and how near those come to a product of large matrices, on the processor.

    ``arithmetic`` is the float operations a second of a whole pass beside those of the product, and ``convolutions``
    their share of the pass's time. Then the three passes of a convolution of 3x3 by themselves, beside the product too.
    """
    rounds, side = (2, 256) if short else (40, 2048)
    data = pictures(BATCH)
    processor = resolve(Hardware(device="cpu"))
    ((images, labels),) = as_batches(data, BATCH, 1, torch.device("cpu"))
    left, right = torch.randn(2, side, side)
    whole: dict[str, Callable[[], object]] = {}
    for teacher, student in PAIRS[1:] if short else PAIRS:
        for name, learns, what in ((teacher, False, "forward"), (student, True, "forward and backward")):
            net = placed(network(name, data), data, processor).train(learns)
            whole[f"{name}, {what}"] = partial(_pass, net, images, labels, learns)
    single = {
        f"{width} channels, {side}x{side}": _passes(width, side) for width, side in ((32, 32), (64, 16), (128, 8))
    }
    ways = {"matrix product": lambda: left @ right} | whole
    ways |= {f"{layer}: {name}": way for layer, passes in single.items() for name, way in passes.items()}
    times = compare(ways, "matrix product", rounds)
    fastest = _work(ways["matrix product"]) / times["matrix product"].seconds
    pace = {way: round(_work(ways[way]) / ratio.seconds / fastest, 3) for way, ratio in times.items()}
    found: Numbers = {"matrix product": {"GFLOP/s": round(fastest / 1e9, 1)}}
    found |= {way: {"arithmetic": pace[way], "convolutions": round(_convolving(whole[way]), 3)} for way in whole}
    return found | {layer: {name: pace[f"{layer}: {name}"] for name in passes} for layer, passes in single.items()}


def _passes(width: int, side: int) -> dict[str, Callable[[], object]]:
    """A convolution's forward, and its two gradients."""
    inputs, gradient = (
        t.contiguous(memory_format=torch.channels_last) for t in torch.randn(2, BATCH, width, side, side)
    )
    weight = torch.randn(width, width, 3, 3).contiguous(memory_format=torch.channels_last)

    def back(*wanted: bool) -> object:
        how = (1, 1), (1, 1), (1, 1), False, (0, 0), 1
        return torch.ops.aten.convolution_backward(gradient, inputs, weight, None, *how, wanted)

    return {
        "values": lambda: conv2d(inputs, weight, padding=1),
        "gradients of inputs": lambda: back(True, False, False),
        "gradients of weights": lambda: back(False, True, False),
    }


def _pass(net: Tapped, images: Tensor, labels: Tensor, learns: bool) -> None:
    with torch.set_grad_enabled(learns):
        logits = net(images)
        if learns:
            cross_entropy(logits, labels).backward()


def _work(way: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def _convolving(way: Callable[[], object]) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        way()
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    return sum(spent[name] for name in spent if "convolution" in name) / sum(spent.values())


def compiled(short: bool) -> Numbers:
    """A step under ``torch.compile`` beside one without, what its warm-up takes, and after how many steps it has paid.

    The short form is not compiled to machine code, which takes a compiler and minutes.
    """
    found: Numbers = {}
    for names in PAIRS[1:] if short else PAIRS:
        entry: Numbers = {}
        for what, taught in (("distilled", True), ("plain", False)):
            with _nothing_compiled():
                entry |= {f"{what}, {key}": value for key, value in _compiled(names, taught, short).items()}
        found[named(names)] = entry
    return found


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Forget what is compiled, on the disk too."""
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        yield


def _compiled(names: tuple[str, str], taught: bool, short: bool) -> Numbers:
    data = pictures(8 * BATCH)
    ways = {}
    for way, compile_ in (("as written", False), ("compiled", not short)):
        teacher, student = (network(name, data) for name in names)
        ways[way] = fit_steps(student, Frozen(teacher) if taught else None, data, Hardware(compile=compile_))
    warm_up = timed(ways["compiled"])
    ratios = compare(ways, "as written", 2 if short else 24)
    for step in ways.values():
        step.end()
    saved = (ratios["as written"].seconds - ratios["compiled"].seconds) / steps_a_round()
    pays = round(warm_up / saved) if saved > 0 else "never"
    return as_json(ratios) | {"warm-up, seconds": round(warm_up, 1), "pays after steps": pays}
