"""Unlabelled samples in files, which a trained network predicts."""

from tutelage.data.inputs.inputs import Inputs

__all__ = ["Inputs"]
