"""What a training step costs beside the networks' own work."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pairs import Beat, InRounds, Numbers, as_json, compare
from benchmarks.setting import BATCH, PAIRS, as_batches, bare_steps, named, network, pictures
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.loader import Batches
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.training import Learner, fit
from tutelage.training.hardware import place, resolve


def fit_steps(student: Tapped, source: Frozen | None, data: Data, hardware: Hardware) -> InRounds:
    """``fit`` as a user calls it, a step a round."""
    terms = {"ce": CrossEntropy()} if source is None else labels_and_soft_targets(0.9)
    recipe = Recipe(epochs=1000, batch_size=BATCH, schedule="constant")

    def work(end_round: Callable[[], None]) -> None:
        fit(Learner(student, source, terms), data=data, recipe=recipe, hardware=hardware, seat=Beat(end_round))

    return InRounds(work)


def overhead(short: bool) -> Numbers:
    """A step of ``fit`` beside a bare loop with the same forward, backward and optimiser step. Goal: at most 1.03.

    They take turns step by step. What an epoch adds once (means, a look at the weights) falls on every eighth. In the
    third way the teacher runs between the student's forward and backward.
    """
    rounds = 2 if short else 80
    found: Numbers = {}
    for names in PAIRS[1:] if short else PAIRS:
        data = pictures(8 * BATCH)
        teacher, student = (place(network(name, data), resolve(Hardware())) for name in names)
        batches = as_batches(data, BATCH, 8)
        ways = {
            "bare loop": InRounds(lambda end, s=student, t=teacher, b=batches: bare_steps(s, t, b, end)),
            "fit": fit_steps(student, Frozen(teacher), data, Hardware()),
            "bare loop, student first": InRounds(
                lambda end, s=student, t=teacher, b=batches: bare_steps(s, t, b, end, teacher_first=False)
            ),
        }
        found[named(names)] = as_json(compare(ways, "bare loop", rounds))
        for way in ways.values():
            way.end()
    return found


def loader(short: bool) -> Numbers:
    """The batches alone, beside a training step without a teacher. Goal: at most 0.02."""
    rounds = 2 if short else 80
    data = pictures(8 * BATCH)

    def batches(end_round: Callable[[], None]) -> None:
        made = Batches(data.train, batch_size=BATCH, views=data.views, layout=torch.channels_last)
        for epoch in range(1000):
            for _ in made.epoch(epoch):
                end_round()

    found: Numbers = {}
    for _, name in PAIRS[1:] if short else PAIRS:
        ways = {"fit, plain": fit_steps(network(name, data), None, data, Hardware()), "batches": InRounds(batches)}
        found[name] = as_json(compare(ways, "fit, plain", rounds))
        for way in ways.values():
            way.end()
    return found


def floor(short: bool) -> Numbers:
    """What of a pass is convolutions, and how near those come to a product of large matrices.

    ``arithmetic`` is the float operations a second of a whole pass beside those of the product, and ``convolutions``
    their share of the pass's time. Then the three passes of a convolution of 3x3 by themselves, beside the product too.
    """
    rounds, side = (2, 256) if short else (40, 2048)
    data = pictures(BATCH)
    ((images, labels),) = as_batches(data, BATCH, 1)
    left, right = torch.randn(2, side, side)
    whole: dict[str, Callable[[], object]] = {}
    for teacher, student in PAIRS[1:] if short else PAIRS:
        for name, learns, what in ((teacher, False, "forward"), (student, True, "forward and backward")):
            net = place(network(name, data), resolve(Hardware())).train(learns)
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
    rounds = 2 if short else 24
    found: Numbers = {}
    for names in PAIRS[1:] if short else PAIRS:
        data = pictures(8 * BATCH)
        entry: Numbers = {}
        for what, taught in (("distilled", True), ("plain", False)):
            ways = {}
            for way, compile_ in (("as written", False), ("compiled", not short)):
                teacher, student = (network(name, data) for name in names)
                source = Frozen(teacher) if taught else None
                ways[f"{what}, {way}"] = fit_steps(student, source, data, Hardware(compile=compile_))
            start = time.perf_counter()
            ways[f"{what}, compiled"]()
            warm_up = time.perf_counter() - start
            ratios = compare(ways, f"{what}, as written", rounds)
            entry |= as_json(ratios)
            slow, fast = (ratios[f"{what}, {way}"].seconds for way in ("as written", "compiled"))
            entry[f"{what}, warm-up, seconds"] = round(warm_up, 1)
            entry[f"{what}, pays after steps"] = round(warm_up / (slow - fast)) if slow > fast else "never"
            for step in ways.values():
                step.end()
        found[named(names)] = entry
    return found
