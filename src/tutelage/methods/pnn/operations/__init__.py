"""Metrics of networks with the operations of this method."""
