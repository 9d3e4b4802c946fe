"""Heads of networks for this method."""
