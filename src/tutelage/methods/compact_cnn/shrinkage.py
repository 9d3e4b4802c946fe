"""The regulariser on the scales of batch normalisations, and its proximal step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.methods.compact_cnn.resources import Resources, norms_of
from tutelage.models.outputs import Outputs
from tutelage.terms.term import Term


def shrunk(values: Tensor, amount: Tensor | float) -> Tensor:
    """The proximal step of ``amount`` x the largest absolute value of each column: (M, N) to the same shape.

        argmin_x 1/2 ||x - v||^2 + amount max_m |x_m|

    The largest absolute values of a column become equal, and their sum decreases by ``amount``; if the sum of all is
    smaller, the column becomes 0. For M = 1 this is the soft threshold.
    """
    if len(values) == 1:
        return values.sign() * (values.abs() - amount).clamp(min=0)
    ordered, _ = values.abs().sort(0, descending=True)
    ranks = torch.arange(1, len(values) + 1, device=values.device, dtype=values.dtype)[:, None]
    levels = (ordered.cumsum(0) - amount) / ranks
    level = levels.amax(0).clamp(min=0)  # the level of the number of values that it lowers is the largest one
    return values.sign() * values.abs().minimum(level)


class ResourceLoss(Term):
    """The weighted cost of a network's layers, linear in the scales gamma of its batch normalisations: one value ().

        u_i = max over the batch normalisations of unit i of |gamma|
        R_l = k_l (a_out sum over inputs i of u_i + a_in sum over outputs i of u_i) + c_l sum over outputs i of u_i
        loss = sum over blocks b of lambda_b sum over layers l of b of R_l / C

    with k_l and c_l of ``LayerCost``, a_in and a_out the numbers of inputs and outputs of the layer that remain,
    without gradient, and C the cost of the whole network. A unit is switched off, and stays so, when u_i falls to
    ``threshold``: its scales and biases are 0. In each step this happens to at most one unit of a group. While the cost
    is at most its target, the loss is 0. With targets of blocks, lambda_b is 0 while the cost of block b is at most its
    target, and the units of its layers are not in the loss of other blocks.

    Attributes:
        weights: lambda_b, (B,).
        alive: the units that are not switched off, (N,) bool, of all groups in turn.
        switched_off: the step at which a unit was switched off, (N,) float, or -1.

    Args:
        network: its batch normalisations are read and changed; it does not become part of the term.
        resources: of the network.
        weights: the initial lambda_b.
        target: the largest cost.
        block_targets: the largest cost of each block, or empty.
        threshold: for u_i.
        floor: the number of units of a group that are not switched off.
        proximal: ``shrink`` lowers the scales, and the loss has no gradient.
    """

    reads_labels = False
    roles = ()
    weights: Tensor
    alive: Tensor
    switched_off: Tensor
    members: Tensor
    full: Tensor
    targets: Tensor
    constant: Tensor
    products: Tensor
    linears: Tensor
    layer_inputs: Tensor
    layer_outputs: Tensor
    of_blocks: Tensor
    owners: Tensor
    of_inputs: Tensor
    of_outputs: Tensor

    def __init__(
        self,
        network: nn.Module,
        resources: Resources,
        weights: Sequence[float],
        target: int,
        block_targets: Sequence[int] = (),
        *,
        threshold: float = 0.01,
        floor: int = 2,
        proximal: bool = True,
    ) -> None:
        super().__init__()
        self.resources, self.target, self.block_targets = resources, target, tuple(block_targets)
        self.threshold, self.floor, self.proximal = threshold, floor, proximal
        self._norms = [[norm for norm, _ in norms_of(network, group)] for group in resources.groups]
        for number, group in enumerate(resources.groups):
            for place, (_, columns) in enumerate(norms_of(network, group)):
                self.register_buffer(f"channels_{number}_{place}", columns.clone(), persistent=False)
        units = resources.units
        numbers = torch.repeat_interleave(torch.arange(len(units)), torch.tensor(units))
        scale = float(resources.total(units))
        buffers = {
            "members": nn.functional.one_hot(numbers, len(units)).float().T,  # (G, N)
            "full": torch.tensor(units, dtype=torch.float32),
            "targets": torch.tensor(block_targets or [target], dtype=torch.float32) / scale,
            "constant": torch.tensor(resources.constant / scale),
        }
        layers = resources.layers
        buffers |= {
            "products": torch.tensor([layer.product / scale for layer in layers]),
            "linears": torch.tensor([layer.linear / scale for layer in layers]),
            "layer_inputs": torch.tensor([float(layer.inputs) for layer in layers]),
            "layer_outputs": torch.tensor([float(layer.outputs) for layer in layers]),
            "of_blocks": nn.functional.one_hot(
                torch.tensor([layer.block for layer in layers]), len(resources.blocks)
            ).float(),  # (L, B)
            "owners": nn.functional.one_hot(torch.tensor(resources.owners), len(resources.blocks)).float(),  # (G, B)
            "of_inputs": _matrix([layer.of_inputs for layer in layers], len(units)),  # (L, G)
            "of_outputs": _matrix([layer.of_outputs for layer in layers], len(units)),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32))
        self.register_buffer("alive", torch.ones(len(numbers), dtype=torch.bool))
        self.register_buffer("switched_off", torch.full((len(numbers),), -1.0))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), as a share of the cost of the whole network."""
        weights, _ = self._unit_weights()
        loss = weights @ (self.members @ self.scales())
        return loss.detach() if self.proximal else loss

    def scales(self) -> Tensor:
        """u, (N,) of all groups in turn."""
        return torch.cat([self._matrix_of(number).abs().amax(0) for number in range(len(self._norms))])

    def counts(self) -> list[int]:
        """The number of units of each group that are not switched off."""
        return [int(count) for count in (self.members @ self.alive.float()).tolist()]

    def importance(self) -> list[Tensor]:
        """(units,) for each group: u_i > 0; below 0 for units that are switched off, the later, the larger."""
        off = self.switched_off - self.switched_off.max() - 1
        values = self.scales().where(self.alive, off).detach().cpu()
        return list(torch.split(values, list(self.resources.units)))

    @torch.no_grad()
    def shrink(self, rate: float, step: int) -> None:
        """Lower the scales by the learning rate x the loss's weight of each unit, and switch units off.

        Units of groups without weight, which the target or the floor protects, do not change.

        Args:
            rate: the learning rate; 0 only switches units off.
            step: the number of the step.
        """
        weights, counts = self._unit_weights()
        weights = weights * (counts > self.floor)
        for number in range(len(self._norms)):
            if self.proximal:
                self._write(number, shrunk(self._matrix_of(number), rate * weights[number]))
        units = list(self.resources.units)
        falls = []
        parts = zip(torch.split(self.scales(), units), torch.split(self.alive, units), weights, strict=True)
        for scales, alive, weight in parts:  # one unit of a group at a time, so that the target is not passed by far
            smallest, index = scales.where(alive, torch.inf).min(0, keepdim=True)
            is_off = (smallest <= self.threshold) & (weight > 0)
            falls.append(torch.zeros_like(alive).scatter(0, index, is_off))
        fallen = torch.cat(falls)
        self.switched_off.copy_(torch.where(fallen, float(step), self.switched_off))
        self.alive.logical_and_(~fallen)
        for number, alive in enumerate(torch.split(self.alive, units)):
            self._write(number, self._matrix_of(number) * alive)
            for place, norm in enumerate(self._norms[number]):
                channels = self._channels(number, place)
                norm.bias[channels] = norm.bias[channels] * alive[:, None]

    def _unit_weights(self) -> tuple[Tensor, Tensor]:
        """The loss's derivative by u of a unit of each group, and the number of their units that remain; (G,) each."""
        counts = self.members @ self.alive.float()
        removed = self.full - counts
        inputs = self.layer_inputs - self.of_inputs @ removed
        outputs = self.layer_outputs - self.of_outputs @ removed
        costs = self.of_blocks.T @ (self.products * inputs * outputs + self.linears * outputs)
        if self.block_targets:
            active = (costs > self.targets).float()
        else:
            active = (costs.sum() + self.constant > self.targets).float().expand(len(costs))
        of_layers = self.of_blocks @ (self.weights * active)
        by_outputs = self.of_outputs.T @ (of_layers * (self.products * inputs + self.linears))
        by_inputs = self.of_inputs.T @ (of_layers * self.products * outputs)
        return (by_outputs + by_inputs) * (self.owners @ active), counts

    def _channels(self, number: int, place: int) -> Tensor:
        channels: Tensor = getattr(self, f"channels_{number}_{place}")
        return channels

    def _matrix_of(self, number: int) -> Tensor:
        """The scales of a group, (M, units), with M batch normalisations times channels of a unit."""
        return torch.cat(
            [norm.weight[self._channels(number, place)].T for place, norm in enumerate(self._norms[number])]
        )

    def _write(self, number: int, scales: Tensor) -> None:
        first = 0
        for place, norm in enumerate(self._norms[number]):
            channels = self._channels(number, place)
            norm.weight[channels] = scales[first : first + channels.shape[1]].T
            first += channels.shape[1]


def _matrix(rows: Sequence[Mapping[int, int]], columns: int) -> Tensor:
    return torch.tensor([[float(row.get(column, 0)) for column in range(columns)] for row in rows])
