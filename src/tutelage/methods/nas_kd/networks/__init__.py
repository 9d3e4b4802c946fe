"""Networks of cells, built by name."""
