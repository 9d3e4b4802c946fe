"""Methods compared on an equal footing: what is asked, what is run, what came out."""

PLAIN, TEACHER = "plain", "teacher"
"""The rows of the plain student and of the teachers."""
