"""Inputs moved on purpose, against a network: for views in training and for evaluation."""

from tutelage.attacks.boundary import BoundarySamples, boundary_attack, other_classes

__all__ = ["BoundarySamples", "boundary_attack", "other_classes"]
