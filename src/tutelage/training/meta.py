"""Virtual (look-ahead) steps, for update rules that differentiate through an optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def virtual_step(model: nn.Module, loss: Tensor, lr: float) -> dict[str, Tensor]:
    """The model's parameters after a virtual step of plain SGD: theta - lr dL/dtheta.

    The model is not changed. The result is differentiable with respect to theta and everything else that the loss
    depends on. The forward pass of the loss must have second derivatives: ``Step.forward(eager=True)``.

    Args:
        model: the network; parameters without ``requires_grad``, or that the loss does not use, keep their values.
        loss: (), with its graph, which is retained.
        lr: the learning rate; there is no momentum and no weight decay.

    Returns:
        The parameters by the names of ``model.named_parameters()``, for ``Tapped.with_parameters``.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(trainable.values()), create_graph=True, allow_unused=True)
    return {
        name: parameter if gradient is None else parameter - lr * gradient
        for (name, parameter), gradient in zip(trainable.items(), gradients, strict=True)
    }
