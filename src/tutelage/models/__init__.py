"""Networks: the field's CIFAR families, doors to everybody else's, and how any of them is tapped by role."""

from tutelage.models.digest import Digest
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped

__all__ = ["Digest", "Outputs", "Tapped"]
