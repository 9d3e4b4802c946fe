"""Readers of data sets: one module or folder per format of ``tutelage.formats``, and what they have in common.

A reader is not imported before a data set of its format is opened.
"""
