"""Attacks on a network: perturbed inputs, for views in training and for evaluation."""

from tutelage.attacks.adversarial import AdversarialSamples
from tutelage.attacks.boundary import BoundarySamples, boundary_attack, draw_targets
from tutelage.attacks.pgd import input_gradient, margin, pgd, zero_gradients

__all__ = [
    "AdversarialSamples",
    "BoundarySamples",
    "boundary_attack",
    "draw_targets",
    "input_gradient",
    "margin",
    "pgd",
    "zero_gradients",
]
