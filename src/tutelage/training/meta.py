"""Virtual (look-ahead) steps, for update rules that differentiate through an optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.training.processes import Processes


def parameter_gradients(model: nn.Module, loss: Tensor, *, create_graph: bool = True) -> dict[str, Tensor]:
    """The gradients of a loss by the names of ``model.named_parameters()``; the graph of the loss is retained.

    Args:
        model: the network; parameters without ``requires_grad``, or that the loss does not use, are left out.
        loss: (), with its graph.
        create_graph: whether the gradients are differentiable. The forward pass of the loss must then have second
            derivatives: ``Step.forward(eager=True)``.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(
        loss, list(trainable.values()), retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return {name: gradient for name, gradient in zip(trainable, gradients, strict=True) if gradient is not None}


def virtual_step(model: nn.Module, loss: Tensor, lr: float, *, first_order: bool = False) -> dict[str, Tensor]:
    """The model's parameters after a virtual step of plain SGD: theta - lr dL/dtheta.

    The model is not changed. The result is differentiable with respect to theta and everything else that the loss
    depends on. The forward pass of the loss must have second derivatives: ``Step.forward(eager=True)``.

    Args:
        model: the network; parameters without ``requires_grad``, or that the loss does not use, keep their values.
        loss: (), with its graph, which is retained.
        lr: the learning rate; there is no momentum and no weight decay.
        first_order: whether dL/dtheta counts as a constant, so that the result has the derivative 1 with respect to
            theta, and no second derivatives are needed.

    Returns:
        The trainable parameters by the names of ``model.named_parameters()``, for ``Tapped.with_parameters``.
    """
    gradients = parameter_gradients(model, loss, create_graph=not first_order)
    return {
        name: parameter - lr * gradients[name] if name in gradients else parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def check_single_process(method: str, processes: Processes) -> None:
    """Refuse several processes, whose gradients and batch statistics are averaged only after a step.

    Raises:
        TutelageError: there are several.
    """
    if processes.world > 1:
        raise TutelageError(
            f"{method} differentiates through a step, which {processes.world} processes cannot share; use one process"
        )
