"""The choice of a cell."""
