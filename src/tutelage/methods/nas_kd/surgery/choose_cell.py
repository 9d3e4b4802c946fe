"""The choice of a cell in a search network."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.methods.nas_kd.networks.cells import Cells
from tutelage.models.surgery import append_operation, applied_operations, record_operations


def apply(network: nn.Module, example: Tensor, *, cell: str, depth: int) -> nn.Module:
    """A new network with this cell in place of a search network, whose weights it has.

    Args:
        network: a search network, which does not change.
        example: not used.
        cell: a digit for the operation of each edge.
        depth: the number of cells.

    Raises:
        TutelageError: ``network`` is no search network, or has no such cell.
    """
    if not isinstance(network, Cells):
        raise TutelageError(f"a cell is chosen in a network such as cells-2-32, and this is a {type(network).__name__}")
    chosen = network.with_cell(cell, depth)
    record_operations(chosen, applied_operations(network))
    append_operation(chosen, "choose_cell", cell=cell, depth=depth)
    return chosen
