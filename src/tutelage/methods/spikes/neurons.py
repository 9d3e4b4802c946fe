"""Rate coding of images, and spiking neurons over whole sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tutelage.models.external.common import import_extra
from tutelage.models.outputs import at_least_float32


def rate_code(pixels: Tensor, steps: int) -> Tensor:
    """Draw a spike train for each pixel p: in each step a spike with probability p, independent of all others.

    Args:
        pixels: (B, ...) in [0, 1]; larger and smaller ones count as 1 and 0.
        steps: T.

    Returns:
        (B, T, ...), 0 or 1, without gradients, from torch's global generator of the device.
    """
    shape = (pixels.shape[0], steps, *pixels.shape[1:])
    # The same numbers for each memory layout.
    uniform = torch.rand(shape, dtype=at_least_float32(pixels).dtype, device=pixels.device)
    return (uniform < pixels.unsqueeze(1)).to(pixels.dtype)


class RateCoding(nn.Module):
    """``rate_code`` as a layer, in train and in eval mode.

    Its gradient is 0. The surrogate gradient "rate", for attacks, is that of the mean: the pixel in each step.

    Args:
        steps: T.
    """

    is_random = True

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, ...) in [0, 1] to (B, T, ...)."""
        return rate_code(pixels, self.steps)

    @property
    def surrogates(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """The declared surrogate gradient."""
        return {"rate": lambda pixels: pixels.unsqueeze(1).expand(-1, self.steps, *pixels.shape[1:])}

    def extra_repr(self) -> str:
        """The settings that ``print`` displays."""
        return f"steps={self.steps}"


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons (``snntorch.Leaky``), from membrane potential 0 in each call.

        u_t = beta u_{t-1} + I_t - theta s_{t-1},   s_t = 1 if u_t > theta, else 0,   theta = 1,   u_0 = s_0 = 0

    In the backward pass ds/du is 1 / (1 + slope |u - theta|)^2 (fast sigmoid), and the reset theta s_{t-1} has no
    gradient.

    Args:
        beta: the decay of the potential.
        slope: of the surrogate gradient.

    Raises:
        TutelageError: the extra ``snn`` is not installed.
    """

    def __init__(self, beta: float = 0.9, slope: float = 25.0) -> None:
        super().__init__()
        library = import_extra("snn", "snntorch", "snn")
        with torch.device("cpu"):  # it reads its own buffers, which is not possible on the meta device
            self.neuron = library.Leaky(beta=beta, spike_grad=library.surrogate.fast_sigmoid(slope))
        library.SpikingNeuron.instances.remove(self.neuron)  # a list of the library, which would keep it in memory

    def forward(self, currents: Tensor) -> Tensor:
        """I (T, B, ...) to s of the same shape, at least float32."""
        currents = at_least_float32(currents)
        empty, membrane, spikes = self.neuron.mem, torch.zeros_like(currents[0]), []
        for current in currents:
            spike, membrane = self.neuron(current, membrane)
            spikes.append(spike.to(current.dtype))  # the library's are float32
        # The layer stores its last state, with the whole graph of the pass; nothing reads it.
        self.neuron.mem, self.neuron.reset = empty, None
        return torch.stack(spikes)
