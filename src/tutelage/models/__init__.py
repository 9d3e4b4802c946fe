"""Networks: built-in families, loaders for external model libraries, and access to features by role."""

from tutelage.models.derived_role import DerivedRole
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped

__all__ = ["DerivedRole", "Outputs", "Tapped"]
