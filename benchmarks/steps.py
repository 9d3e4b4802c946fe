"""Time of a training step: overhead, batches, precision, compilation, and the share of convolutions."""

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

from benchmarks.pairs import Numbers, Rounds, as_json, compare, every, timed
from benchmarks.setting import (
    BATCH,
    PAIRS,
    SMALL,
    bare_steps,
    device,
    make_batches,
    network,
    random_images,
    sizes,
    steps_per_round,
    title,
    to_hardware,
)
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.loader import Batches
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.training import Execution, Learner, Step, fit, together
from tutelage.training.hardware import resolve


def fit_steps(student: Tapped, source: Frozen | None, data: Data, hardware: Hardware, size: int = BATCH) -> Rounds:
    """``fit`` as a user calls it, in rounds of ``steps_per_round`` steps."""
    terms = {"ce": CrossEntropy()} if source is None else labels_and_soft_targets(0.9)
    recipe = Recipe(epochs=10**6, batch_size=size, schedule="constant")

    def work(end_round: Callable[[], None]) -> None:
        end_step = every(steps_per_round(), end_round)

        def update(step: Step) -> None:
            together(step)
            end_step()

        fit(Learner(student, source, terms), data=data, recipe=recipe, execution=Execution.on(hardware), update=update)

    return Rounds(work)


def overhead(short: bool) -> Numbers:
    """A step of ``fit`` relative to a bare loop with the same forward, backward and optimizer step. Goal: at most 1.03.

    They alternate step by step. An epoch has eight steps, so that its own work (means, checks of the weights) is
    included. In the third row the teacher runs between the student's forward and backward passes.
    """
    return {title(names, size): _overhead(names, size, 2 if short else 80) for names, size in _settings(short)}


def _settings(short: bool) -> list[tuple[tuple[str, str], int]]:
    return [(names, size) for names in (SMALL if short else PAIRS) for size in (sizes()[:1] if short else sizes())]


def _overhead(names: tuple[str, str], size: int, rounds: int) -> Numbers:
    data, hardware = random_images(8 * size), resolve(Hardware())
    teacher, student = (to_hardware(network(name, data), data, hardware) for name in names)
    batches = make_batches(data, size, 8, device())

    def bare(end_round: Callable[[], None], *, teacher_first: bool) -> None:
        end_step = every(steps_per_round(), end_round)
        bare_steps(student, teacher, batches, end_step, hardware=hardware, teacher_first=teacher_first)

    loops = {
        "bare loop": Rounds(partial(bare, teacher_first=True)),
        "fit": fit_steps(student, Frozen(teacher), data, Hardware(), size),
        "bare loop, student before teacher": Rounds(partial(bare, teacher_first=False)),
    }
    return _alternate(loops, "bare loop", rounds)


def _alternate(loops: dict[str, Rounds], reference: str, rounds: int) -> Numbers:
    try:
        return as_json(compare(loops, reference, rounds))
    finally:
        for loop in loops.values():
            loop.end()


def precision(short: bool) -> Numbers:
    """A step in each precision and memory format, relative to torch's default; on a GPU also compiled."""
    return {title(names, size): _precision(names, size, short) for names, size in _settings(short)}


def _precision(names: tuple[str, str], size: int, short: bool) -> Numbers:
    settings = {
        f"{kind}, {'channels-last' if last else 'NCHW'}": Hardware(precision=kind, channels_last=last)
        for kind in ("float32", "bfloat16")
        for last in (False, True)
    }
    if device().type != "cpu" and not short:
        best = Hardware(precision="bfloat16", channels_last=True)
        modes = (True, "reduce-overhead")
        settings |= {f"bfloat16, channels-last, compile={mode}": best.replace(compile=mode) for mode in modes}
    data = random_images(8 * size)
    loops = {}
    for setting, hardware in settings.items():
        teacher, student = (network(name, data) for name in names)
        loops[setting] = fit_steps(student, Frozen(teacher), data, hardware, size)
    return _alternate(loops, "float32, NCHW", 2 if short else 8)


def loader(short: bool) -> Numbers:
    """Making a batch, relative to a training step without a teacher. Goal: at most 0.02."""
    rounds = 2 if short else 80
    data = random_images(8 * BATCH)

    def batches(end_round: Callable[[], None]) -> None:
        loader = Batches(data.train, batch_size=BATCH, views=data.views, layout=torch.channels_last, device=device())
        end_step = every(steps_per_round(), end_round)
        for epoch in count():
            for _ in loader.epoch(epoch):
                end_step()

    measured: Numbers = {}
    for _, name in PAIRS[1:] if short else PAIRS:
        step = fit_steps(network(name, data), None, data, Hardware())
        loops = {"fit without a teacher": step, "batches": Rounds(batches)}
        measured[name] = _alternate(loops, "fit without a teacher", rounds)
    return measured


def floor(short: bool) -> Numbers:
    """FLOP rates of whole networks and of single 3x3 convolutions on the CPU, relative to a product of large matrices.

    Also the share of the time of a pass that convolutions take.
    """
    rounds, side = (2, 256) if short else (40, 2048)
    data = random_images(BATCH)
    processor = resolve(Hardware(device="cpu"))
    ((images, labels),) = make_batches(data, BATCH, 1, torch.device("cpu"))
    left, right = torch.randn(2, side, side)
    whole: dict[str, Callable[[], object]] = {}
    for teacher, student in PAIRS[1:] if short else PAIRS:
        for name, training, passes in ((teacher, False, "forward"), (student, True, "forward and backward")):
            net = to_hardware(network(name, data), data, processor).train(training)
            whole[f"{name}, {passes}"] = partial(_pass, net, images, labels, training)
    single = {
        f"{width} channels, {side}x{side}": _passes(width, side) for width, side in ((32, 32), (64, 16), (128, 8))
    }
    work = {"matrix product": lambda: left @ right} | whole
    work |= {f"{layer}: {name}": function for layer, passes in single.items() for name, function in passes.items()}
    times = compare(work, "matrix product", rounds)
    fastest = _flops(work["matrix product"]) / times["matrix product"].seconds
    rates = {name: round(_flops(work[name]) / ratio.seconds / fastest, 3) for name, ratio in times.items()}
    measured: Numbers = {"matrix product": {"GFLOP/s": round(fastest / 1e9, 1)}}
    for name, function in whole.items():
        share = round(_share_of_convolutions(function), 3)
        measured[name] = {"relative FLOP rate": rates[name], "share of time in convolutions": share}
    return measured | {layer: {name: rates[f"{layer}: {name}"] for name in passes} for layer, passes in single.items()}


def _passes(width: int, side: int) -> dict[str, Callable[[], object]]:
    """The forward pass of a convolution and its two gradients."""
    inputs, gradient = (
        t.contiguous(memory_format=torch.channels_last) for t in torch.randn(2, BATCH, width, side, side)
    )
    weight = torch.randn(width, width, 3, 3).contiguous(memory_format=torch.channels_last)

    def backward(*output_mask: bool) -> object:
        geometry = (1, 1), (1, 1), (1, 1), False, (0, 0), 1
        return torch.ops.aten.convolution_backward(gradient, inputs, weight, None, *geometry, output_mask)

    return {
        "forward": lambda: conv2d(inputs, weight, padding=1),
        "gradients of inputs": lambda: backward(True, False, False),
        "gradients of weights": lambda: backward(False, True, False),
    }


def _pass(net: Tapped, images: Tensor, labels: Tensor, training: bool) -> None:
    with torch.set_grad_enabled(training):
        logits = net(images)
        if training:
            cross_entropy(logits, labels).backward()


def _flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def _share_of_convolutions(function: Callable[[], object]) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(times[name] for name in times if "convolution" in name) / sum(times.values())


def compiled(short: bool) -> Numbers:
    """A step under ``torch.compile`` relative to eager mode, the time of compilation, and the steps to break even.

    The short form does not compile to machine code, which needs a compiler and minutes.
    """
    measured: Numbers = {}
    for names in PAIRS[1:] if short else PAIRS:
        entry: Numbers = {}
        for kind, with_teacher in (("distilled", True), ("plain", False)):
            with _empty_compiler_cache():
                entry |= {f"{kind}, {key}": value for key, value in _compiled(names, with_teacher, short).items()}
        measured[title(names)] = entry
    return measured


@contextmanager
def _empty_compiler_cache() -> Iterator[None]:
    """Clear compiled code in memory, and use an empty cache on disk."""
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        yield


def _compiled(names: tuple[str, str], with_teacher: bool, short: bool) -> Numbers:
    data = random_images(8 * BATCH)
    loops = {}
    for mode, compile_ in (("eager", False), ("compiled", not short)):
        teacher, student = (network(name, data) for name in names)
        loops[mode] = fit_steps(student, Frozen(teacher) if with_teacher else None, data, Hardware(compile=compile_))
    warm_up = timed(loops["compiled"])
    ratios = compare(loops, "eager", 2 if short else 24)
    for loop in loops.values():
        loop.end()
    saved = (ratios["eager"].seconds - ratios["compiled"].seconds) / steps_per_round()
    break_even = round(warm_up / saved) if saved > 0 else "never"
    return as_json(ratios) | {"warm-up, s": round(warm_up, 1), "break-even, steps": break_even}
