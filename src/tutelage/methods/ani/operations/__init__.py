"""Metrics of networks that this method changed."""
