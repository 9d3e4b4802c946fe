"""The model card of a student for the Hugging Face hub: ``README.md`` with metadata, made from ``result.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tutelage.config import OBJECT_PREFIX, Config
from tutelage.parsing import write_yaml
from tutelage.runs.commands import as_command
from tutelage.runs.models import DEFAULT_TASK
from tutelage.tasks import Metric, find_task
from tutelage.text import markdown_text

WEIGHTS_NAME = "model.safetensors"
"""The name of the weights file in the repository, by which the hub finds it."""

_ABSOLUTE = re.compile(r"(?:^|(?<=[:@=,+\s'\"(]))(?:~[^/\\\s]*|[A-Za-z]:)?[/\\](?!/)(?:[^/\\:@,+]*[/\\]+)*")


def without_folders(value: Any) -> Any:
    """Plain values in which absolute paths are shortened to their last part: ``folder:/home/u/photos`` to
    ``folder:photos``.
    """
    if isinstance(value, str):
        return _ABSOLUTE.sub("", value)
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(without_folders, value))
    return value


def model_card(repo: str, result: Mapping[str, Any], config: Config, header: Mapping[str, Any], script: str) -> str:
    """The text of ``README.md``.

    Args:
        repo: ``USER/REPO``.
        result: ``result.json``, without absolute paths.
        config: the run's configuration, without absolute paths.
        header: the metadata of the weights file, without absolute paths.
        script: ``load.py`` of the repository.
    """
    name = repo.rpartition("/")[2]
    teachers = f", with the teacher {', '.join(config.teacher)}" if config.teacher else ""
    about = f"`{header.get('model', config.student)}`, trained by `{config.method}` on `{config.data}`{teachers}."
    parts = [
        f"---\n{write_yaml(_metadata(name, result, config, header))}---\n",
        f"# {markdown_text(name)}\n",
        f"{markdown_text(about)}\n",
        _results(result),
        _calibration(result),
        _usage(repo, header, script),
        f"## Training\n\n```\n{as_command(config)}\n```\n",
        "Made with tutelage.\n",
    ]
    return "\n".join(part for part in parts if part)


def _metadata(name: str, result: Mapping[str, Any], config: Config, header: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the hub reads: library, task, tags, and the results as a ``model-index``."""
    metrics = [
        {"type": metric_name, "name": metric.title, "value": value} for metric_name, metric, value in _numbers(result)
    ]
    task = (result.get("task") or DEFAULT_TASK).replace("_", "-")
    kind = "image-classification" if task == DEFAULT_TASK and "image_shape" in header else task
    evaluated = {
        "task": {"type": kind},
        "dataset": {"type": re.sub(r"[^\w.-]+", "-", config.data.removeprefix("hf:")).strip("-"), "name": config.data},
        "metrics": metrics,
    }
    metadata: dict[str, Any] = {"library_name": "tutelage", "tags": ["tutelage", "safetensors"]}
    if config.teacher:
        metadata["tags"].append("knowledge-distillation")
    if kind == "image-classification":
        metadata["pipeline_tag"] = kind
    if config.data.startswith("hf:"):
        metadata["datasets"] = [config.data.removeprefix("hf:")]
    if metrics:
        metadata["metrics"] = [entry["type"] for entry in metrics]
        metadata["model-index"] = [{"name": name, "results": [evaluated]}]
    return metadata


def _numbers(result: Mapping[str, Any]) -> list[tuple[str, Metric, float]]:
    """The single numbers of the test split: name, metric and value."""
    metrics = find_task(result.get("task") or DEFAULT_TASK).metrics
    test = result["test"]
    return [
        (name, metric, float(test[name]))
        for name, metric in metrics.items()
        if isinstance(metric, Metric) and isinstance(test.get(name), int | float)
    ]


def _results(result: Mapping[str, Any]) -> str:
    rows = [f"| {metric.title} | {metric.text(value)} |" for _, metric, value in _numbers(result)]
    cost = result["cost"]
    rows += [f"| parameters | {cost['parameters']:,} |", f"| FLOPs per input | {cost['flops']:,} |"]
    samples = result["test"].get("samples")
    head = f"## Results\n\nOn {samples:,} test samples:\n" if isinstance(samples, int) else "## Results\n"
    return "\n".join([head, "| metric | value |", "| --- | --- |", *rows, ""])


def _calibration(result: Mapping[str, Any]) -> str:
    calibration = result.get("calibration")
    if not calibration:
        return ""
    return (
        f"Calibrated on {calibration['samples']:,} held-out samples: the temperature is "
        f"{calibration['temperature']:.4g}, and prediction sets contain the true class with probability "
        f"{calibration['coverage']:.0%} or more, on data like the training data.\n"
    )


def _usage(repo: str, header: Mapping[str, Any], script: str) -> str:
    spec = str(header.get("model", ""))
    code = ""
    if spec.startswith(OBJECT_PREFIX) or ":" in spec.removeprefix("timm/").removeprefix("hf/"):
        code = f"The code of the network, `{spec.removeprefix(OBJECT_PREFIX)}`, is not in this repository.\n\n"
    predict = (
        "```python\nimport tutelage\nfrom huggingface_hub import snapshot_download\n\n"
        f"folder = snapshot_download({repo!r})\n"
        f'rows = tutelage.predict_files(f"{spec}@{{folder}}/{WEIGHTS_NAME}", "photo.jpg").rows\n```\n\n'
        if "image_shape" in header and not code
        else ""
    )
    return f"## Use\n\n{code}{predict}In plain PyTorch, `load.py`:\n\n```python\n{script}```\n"
