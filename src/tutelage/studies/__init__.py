"""Studies: comparisons of methods under equal conditions."""

PLAIN, TEACHER = "plain", "teacher"
"""The rows of the plain student and of the teachers."""
