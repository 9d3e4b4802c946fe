"""Metrics of networks for this method."""
