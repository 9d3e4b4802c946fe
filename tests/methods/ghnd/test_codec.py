"""Messages: the error of quantisation, constant maps, bytes, and the delay model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tasks.scenes import scene_data
from tutelage.methods.ghnd.codec import HEADER, Codec, dequantise, pack, quantise, unpack
from tutelage.methods.ghnd.delay import Path, jpeg_bytes

GENERATOR = torch.Generator().manual_seed(0)
NORMAL = torch.randn(5, 3, 6, 7, generator=GENERATOR)
CASES = {
    "around zero": NORMAL,
    "positive": NORMAL.abs() + 5,
    "negative": -NORMAL.abs() - 5,
    "one outlier": NORMAL.index_put((torch.tensor(0),) * 4, torch.tensor(1e4)),
    "constant": torch.full((2, 3, 4, 4), 2.5),
    "constant below zero": torch.full((2, 3, 4, 4), -1e-3),
    "zero": torch.zeros(2, 3, 4, 4),
}


def loop_dequantised(values: Tensor) -> list[float]:
    """8 bits by the range of one sample, in plain loops."""
    flat = values.flatten().double().tolist()
    low, high = min(*flat, 0.0), max(*flat, 0.0)
    scale = (high - low) / 255 or 1.0
    zero = round(-low / scale)
    return [scale * (min(max(round(v / scale + zero), 0), 255) - zero) for v in flat]


@pytest.mark.parametrize("name", CASES)
def test_error_is_at_most_half_a_step_and_equals_plain_loops(name: str) -> None:
    values = CASES[name].double()
    quantised = quantise(values)
    assert bool(((quantised.levels >= 0) & (quantised.levels <= 255)).all())
    assert bool(((quantised.zero >= 0) & (quantised.zero <= 255)).all())
    restored = dequantise(quantised)
    assert bool(((restored - values).abs() <= quantised.scale * (0.5 + 1e-9)).all())
    for sample, expected in zip(restored, values, strict=True):
        assert sample.flatten().tolist() == pytest.approx(loop_dequantised(expected), abs=1e-12)
    if "constant" in name or name == "zero":
        torch.testing.assert_close(restored, values)


def test_each_sample_has_its_own_range() -> None:
    values = torch.stack([NORMAL[0], 1000 * NORMAL[0]])
    torch.testing.assert_close(dequantise(quantise(values))[0], dequantise(quantise(values[:1]))[0])


@pytest.mark.parametrize(("bits", "header"), [(8, 5), (16, 0), (32, 0)])
def test_message_has_a_byte_for_each_eight_bits_and_holds_what_the_codec_returns(bits: int, header: int) -> None:
    message = pack(NORMAL[0], bits)
    assert len(message) == header + bits // 8 * 3 * 6 * 7
    codec = Codec(bits).eval()
    torch.testing.assert_close(unpack(message, (3, 6, 7), bits), codec(NORMAL)[0], atol=0, rtol=1e-6)
    assert HEADER.size == 5


def test_message_of_the_papers_size() -> None:
    assert len(pack(torch.randn(3, 204, 271))) == 3 * 204 * 271 + 5  # 800 x 1066 pixels: 166 kB


def test_codec_changes_nothing_in_train_mode() -> None:
    codec = Codec(8)
    assert codec.train()(NORMAL) is NORMAL
    assert not torch.equal(codec.eval()(NORMAL), NORMAL)
    assert Codec(32).eval()(NORMAL) is NORMAL


def test_messages_of_another_length_and_other_bits_are_refused(refused) -> None:
    with refused("a message of 12 bytes", "needs 131"):
        unpack(bytes(12), (3, 6, 7))
    with refused("8, 16 or 32 bits", "7"):
        Codec(7)


def test_delays_and_the_rate_at_which_two_paths_are_equal(refused) -> None:
    local, jpeg, split = Path(2.0), Path(0.0, 100_000, 0.1), Path(0.2, 20_000, 0.08)
    assert local.delay(1e3) == local.delay(1e9) == 2
    assert jpeg.delay(1e6) == pytest.approx(0.8 + 0.1)
    assert split.delay(1e6) == pytest.approx(0.2 + 0.16 + 0.08)
    rate = jpeg.crossing(split)
    assert rate is not None
    assert jpeg.delay(rate) == pytest.approx(split.delay(rate))
    assert split.delay(rate / 2) < jpeg.delay(rate / 2)
    assert Path(0.0, 10, 1.0).crossing(Path(0.0, 20, 2.0)) is None
    assert Path(0.2, 20_000, 0.08, share=0.5).delay(1e6) == pytest.approx(0.2 + 0.12)
    with refused("above 0", "0"):
        local.delay(0)


def test_jpeg_sizes_are_those_of_files() -> None:
    split = scene_data(6, 2).train
    low, high = jpeg_bytes(split, [0, 3], quality=30), jpeg_bytes(split, [0, 3])
    assert low is not None
    assert high is not None
    assert 300 < low < high < 64 * 64 * 2
