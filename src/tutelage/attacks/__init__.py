"""Attacks on a network: frozen values that perturb inputs, for evaluation; and views of perturbed inputs, for training.

``PGD(radius=0.03)(model, inputs, labels)``, or ``find_attack("pgd:0.03")``.
"""

from tutelage.attacks.adversarial import AdversarialSamples
from tutelage.attacks.algorithms.den import DEN
from tutelage.attacks.algorithms.fgsm import FGSM
from tutelage.attacks.algorithms.pgd import PGD
from tutelage.attacks.algorithms.square import Square
from tutelage.attacks.attack import Attack
from tutelage.attacks.boundary import BoundarySamples, boundary_attack, draw_targets
from tutelage.attacks.criteria import Accepted, Criterion, Misclassified, Targeted, margin
from tutelage.attacks.foolbox import FoolboxAttack
from tutelage.attacks.gradients import input_gradient, without_gradient, zero_gradients
from tutelage.attacks.lookup import attack_names, find_attack, find_attacks
from tutelage.attacks.norms import Norm, distance
from tutelage.attacks.rejecting import Rejecting
from tutelage.attacks.surrogates import SurrogateGradient, declared_surrogates
from tutelage.attacks.worst import Worst

__all__ = [
    "DEN",
    "FGSM",
    "PGD",
    "Accepted",
    "AdversarialSamples",
    "Attack",
    "BoundarySamples",
    "Criterion",
    "FoolboxAttack",
    "Misclassified",
    "Norm",
    "Rejecting",
    "Square",
    "SurrogateGradient",
    "Targeted",
    "Worst",
    "attack_names",
    "boundary_attack",
    "declared_surrogates",
    "distance",
    "draw_targets",
    "find_attack",
    "find_attacks",
    "input_gradient",
    "margin",
    "without_gradient",
    "zero_gradients",
]
