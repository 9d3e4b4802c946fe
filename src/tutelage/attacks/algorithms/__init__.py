"""Attacks, one file each, found by name: ``pgd.py`` sets ``ATTACK`` to the class of ``pgd:0.03``."""
