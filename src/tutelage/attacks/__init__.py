"""Inputs moved on purpose, against a network: for views in training and for evaluation."""

from tutelage.attacks.boundary import BoundarySamples, boundary_attack, other_classes
from tutelage.attacks.pgd import input_gradient, pgd, zero_gradients

__all__ = ["BoundarySamples", "boundary_attack", "input_gradient", "other_classes", "pgd", "zero_gradients"]
