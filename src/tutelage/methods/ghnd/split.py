"""A network in two halves: the head on a device sends messages, the tail on a server returns the outputs."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.methods.ghnd.codec import pack, unpack
from tutelage.methods.ghnd.neural_filter import object_probability
from tutelage.methods.ghnd.surgery.bottleneck import Bottleneck
from tutelage.methods.ghnd.surgery.neural_filter import ROLE
from tutelage.models.modes import eval_mode
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped

CODE = "code"  # the role of the encoder's output


class SplitNetwork:
    """Runs a network with a bottleneck in two halves.

    Args:
        model: after the operation ``bottleneck``, and perhaps ``neural_filter``.

    Raises:
        TutelageError: the network has no bottleneck.
    """

    def __init__(self, model: Tapped) -> None:
        layers = [str(op["layer"]) for op in applied_operations(model.module) if op["operation"] == "bottleneck"]
        if len(layers) != 1:
            raise TutelageError(
                f"{type(model.module).__name__} has {len(layers)} bottlenecks; train it with method=ghnd"
            )
        self.bottleneck, self.layer = cast(Bottleneck, model.module.get_submodule(layers[0])), layers[0]
        self.model = model.with_roles({CODE: f"{layers[0]}.encoder"}).to(model.mean.device)

    @torch.no_grad()
    def send(self, images: Tensor) -> list[bytes | None]:
        """The message of each image (B, C, H, W): what the device computes and sends.

        ``None`` for an image that the neural filter takes for empty: its encoder does not run.
        """
        messages: list[bytes | None] = []
        with eval_mode(self.model):
            for image in images.split(1):  # type: ignore[no-untyped-call]
                if self.bottleneck.filter is not None:
                    logits = self.model.tap(image, (ROLE,))[ROLE]
                    if bool(object_probability(logits) < self.bottleneck.filter.threshold):
                        messages.append(None)
                        continue
                messages.append(pack(self.model.tap(image, (CODE,))[CODE][0], self.bottleneck.codec.bits))
        return messages

    @torch.no_grad()
    def receive(self, messages: list[bytes | None], like: Tensor) -> Tensor:
        """The network's outputs (B, ...) for messages: what the server computes.

        The layers before the bottleneck run on blank images, and what they return is replaced by the messages.

        Args:
            messages: from ``send``.
            like: images of the same size, (1 or more, C, H, W); their pixels are not read.
        """
        blank = torch.zeros_like(like[:1]).expand(len(messages), *like.shape[1:]).contiguous()
        with eval_mode(self.model):
            shape = tuple(self.model.tap(blank[:1], (CODE,))[CODE].shape[1:])
        bits = self.bottleneck.codec.bits
        values = [torch.zeros(shape) if m is None else unpack(m, shape, bits) for m in messages]
        codes = torch.stack(values).to(blank)
        empty = torch.tensor([message is None for message in messages], device=codes.device)

        def arrived(*_: object) -> Tensor:
            if self.bottleneck.filter is not None:
                self.bottleneck.filter.empty = empty  # the device has decided
            return codes

        handle = self.bottleneck.codec.register_forward_hook(arrived)
        try:
            with eval_mode(self.model):
                outputs: Tensor = self.model(blank)
        finally:
            handle.remove()
        return outputs
