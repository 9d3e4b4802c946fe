"""The metrics of a run that tables may show: those of its task, and those common to all tasks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tutelage.tasks import Curve, Metric, Task

COMMON_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "memorised": Metric("wrong labels memorised", "lower", percent=True),
        "wrong_labels": Metric("wrong training labels", None),
        "noise_rate": Metric("share of wrong training labels", None, percent=True),
        "parameters": Metric("parameters", "lower"),
        "flops": Metric("FLOPs per input", "lower"),
        "latency_ms": Metric("latency, ms", "lower"),
        "seconds": Metric("training time, s", "lower"),
        "forward_passes": Metric("forward passes of training", "lower"),
        "corruption_accuracy": Metric("accuracy under corruptions", "higher", percent=True),
        "auac": Metric("area under the accuracy-perturbation curve", "higher", percent=True),
        "robust_accuracy": Metric("accuracy under the worst attack", "higher", percent=True),
        "ood_auroc": Metric("out-of-distribution AUROC", "higher", percent=True),
    }
)
"""The metrics of every record, in the order of the file; ``None`` if the task does not measure one."""

STUDY_CURVES = ("per_class_accuracy", "reliability", "risk_coverage")
"""The curves of a task that records have, because the report plots them."""


def task_metrics(task: Task) -> dict[str, Metric]:
    """The scalar metrics of a task that records have."""
    return {name: metric for name, metric in task.metrics.items() if isinstance(metric, Metric) and metric.in_studies}


def metrics_of(task: Task) -> Mapping[str, Metric]:
    """All metrics of a record of this task, its main metric first."""
    return MappingProxyType({**task_metrics(task), **COMMON_METRICS})


def curves_of(task: Task) -> tuple[str, ...]:
    """The names of the curves that a record of this task has."""
    return tuple(name for name in STUDY_CURVES if isinstance(task.metrics.get(name), Curve))
