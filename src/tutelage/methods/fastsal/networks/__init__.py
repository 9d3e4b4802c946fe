"""Families of networks for this method."""
