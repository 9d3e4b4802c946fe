"""Finding labels that look wrong, without a teacher."""

from tutelage.labels.find import label_issues
from tutelage.labels.issues import LabelIssues

__all__ = ["LabelIssues", "label_issues"]
