"""Families of networks: one file each, with the classes of the networks and a ``FAMILY``."""
