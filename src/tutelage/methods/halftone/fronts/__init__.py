"""Fronts of networks for this method."""
