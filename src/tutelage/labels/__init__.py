"""Finding labels that look wrong, without a teacher."""

from tutelage.labels.find import label_issues
from tutelage.labels.issues import LabelIssues
from tutelage.labels.save import save_issues

__all__ = ["LabelIssues", "label_issues", "save_issues"]
