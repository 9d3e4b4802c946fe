"""Networks for this method."""
