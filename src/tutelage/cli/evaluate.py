"""The command ``tutelage evaluate``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tutelage.cli.options import Json, Mean, SkipBad, Std, Test, TrustAll
from tutelage.cli.trained import open_networks
from tutelage.config import ExtraEvaluation
from tutelage.errors import unknown


def evaluate(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, MODEL@WEIGHTS, timm/NAME or hf/NAME.")],
    data: Annotated[str | None, typer.Option(help="Data set.  [default: that of the run]")] = None,
    split: Annotated[str, typer.Option(help="Split of the data: train, validation or test.")] = "test",
    teacher: Annotated[str | None, typer.Option(help="Teacher to compare with: agreement and KL divergence.")] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    image_size: Annotated[
        int | None, typer.Option(min=4, help="Resize image files to this many pixels per side.")
    ] = None,
    test: Test = None,
    skip_bad: SkipBad = False,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Evaluate on corrupted images too: noise, blur, contrast, ...")
    ] = False,
    pgd: Annotated[
        str, typer.Option(help="Evaluate under PGD attacks of these radii too: 0.01,0.03.", metavar="<radii>")
    ] = "",
    attacks: Annotated[
        str,
        typer.Option(
            help="Evaluate under attacks too, and the worst of them: pgd:0.03,square:0.03,den.", metavar="<attacks>"
        ),
    ] = "",
    ood: Annotated[
        str | None, typer.Option(help="Out-of-distribution data set to detect; its images are resized to fit.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Evaluate corruptions and attacks on this many samples.  [default: all]")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    trust: TrustAll = False,
    json_: Json = False,
) -> None:
    """Evaluate a trained network."""
    requested: dict[str, Any] = {"corruptions": corruptions, "pgd": pgd or (), "ood": ood, "samples": samples}
    extra = ExtraEvaluation(**requested, attacks=attacks)  # type: ignore[arg-type]
    from tutelage.config import Hardware
    from tutelage.data.batch import hard_labels
    from tutelage.evaluation import cost_of
    from tutelage.evaluation.calibration import calibrated_metrics
    from tutelage.evaluation.predict import class_logits
    from tutelage.report.console import stderr_console
    from tutelage.runs.classes import check_classes, with_classes
    from tutelage.runs.models import DEFAULT_TASK
    from tutelage.runs.run_data import open_run_data
    from tutelage.tasks import Compute, find_task, incompatibility
    from tutelage.tasks import evaluate as evaluate_network
    from tutelage.training.hardware import resolve

    data_set = open_run_data(run, data, image_size, test, skip_bad)
    if split not in data_set.splits:
        held_out = "A split held out during training is drawn in the run, whose result.json has its accuracy."
        raise unknown("split", split, data_set.splits, held_out if split == "validation" else "")
    device = resolve(Hardware(device=device)).device
    names = [run, *([teacher] if teacher else [])]
    network, *others = open_networks(names, data_set, mean, std, trust)
    model = network.model.to(device)
    teacher_model = others[0].model.to(device) if others else None
    data_set = with_classes(data_set, model, network.classes)
    task = find_task(network.task or data_set.targets.task)
    if "logits" in task.roles:
        check_classes(run, network.classes, data_set)
    if teacher_model is not None and (reason := incompatibility(task, teacher_model, data_set)):
        stderr_console().print(f"teacher {teacher}: not compared: {reason}", highlight=False)
        teacher_model = None
    task.check_extra(extra)
    evaluation_split = data_set.splits[split]
    if not bool(evaluation_split.targets.labelled(evaluation_split.labels).any()):
        stderr_console().print(f"no {split} sample of {data_set.name} has a label", highlight=False)
    result = evaluate_network(model, data_set, split=split, device=device, teacher=teacher_model, task=task.name)
    if network.calibration is not None and task.name == DEFAULT_TASK:
        logits = class_logits(model, "network", data_set, evaluation_split, device)
        labels = hard_labels(evaluation_split.labels).to(device)
        result["calibrated"] = calibrated_metrics(logits, labels, network.calibration)
    result |= task.evaluate_extra(model, data_set, extra, Compute(device), split=split)
    result["cost"] = cost_of(model, task.example(model, data_set), task.samples(model, data_set, evaluation_split))
    if json_:
        print(json.dumps(result, allow_nan=False))
        return
    _print_result(f"{run} on the {split} split of {data_set.name}", result)


def _print_result(title: str, result: dict[str, Any]) -> None:
    from rich.table import Table

    from tutelage.report.console import Terminal

    table = Table(title=title, show_header=False)
    accuracies, counts = result.pop("per_class_accuracy", {}), result.pop("confusion", None)
    by_class = {"recall": accuracies} | {
        title: result.pop(f"per_class_{name}")
        for name, title in (("precision", "precision"), ("f1", "f1"), ("iou", "IoU"))
        if f"per_class_{name}" in result
    }
    calibrated = result.pop("calibrated", {})
    for name, value in {
        **result,
        **result.pop("cost"),
        **{f"calibrated {k}": v for k, v in calibrated.items()},
    }.items():
        if value is not None and not isinstance(value, dict | list):
            table.add_row(name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else str(value))
    for name, values in by_class.items():
        if present := {label: value for label, value in values.items() if value is not None}:
            table.add_row(f"{name} by class", _by_name(present))
    if confused := _most_confused([*accuracies], counts or []):
        table.add_row("most often confused", confused)
    if by_radius := result.get("pgd"):
        table.add_row("accuracy by radius", _by_name(by_radius))
    for name, accuracies in (result.get("corruptions") or {}).items():
        table.add_row(f"under {name.replace('_', ' ')}", "  ".join(f"{accuracy:.3f}" for accuracy in accuracies))
    Terminal().print(table)
    if result.get("attacks") is not None:
        _print_attacks(result)


def _print_attacks(result: dict[str, Any]) -> None:
    """A table of the attacks, the worst of them, and the accuracy by distance."""
    from rich.table import Table

    from tutelage.report.console import Terminal

    table = Table(title="under attack")
    for column in ("attack", "accuracy", "broken", "L2", "Linf", "changed values"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for text, measures in result["attack_measures"].items():
        accuracy = "refused" if text in result["attack_refusals"] else _share(result["attacks"].get(text))
        medians = (f"{measures[name]:.4f}" if measures[name] is not None else "" for name in ("l2", "linf"))
        table.add_row(text, accuracy, _share(measures["found"]), *medians, _share(measures["amsd_0"]))
    table.add_row("worst of all", _share(result["robust_accuracy"]))
    Terminal().print(table)
    for norm, curve in result["attack_curves"].items():
        until = next((n for n, share in enumerate(curve.values(), 1) if share == 0), len(curve))
        points = list(curve.items())[:until]
        Terminal().print(f"accuracy by {norm} distance: {_by_name(dict(points[:: max(1, -(-len(points) // 10))]))}")
    for text, reason in result["attack_refusals"].items():
        Terminal().print(f"{text}: refused: {reason}", highlight=False)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _most_confused(classes: list[str], counts: list[list[int]], pairs: int = 5) -> str:
    """The pairs of classes with the most wrong predictions, in words; empty if there are none."""
    wrong = [
        (count, f"{classes[true]} as {classes[predicted]} {count} of {sum(row)}")
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and predicted != true
    ]
    return ", ".join(text for _, text in sorted(wrong, key=lambda entry: -entry[0])[:pairs])


def _by_name(accuracies: dict[str, float]) -> str:
    return "  ".join(f"{name} {accuracy:.3f}" for name, accuracy in accuracies.items())
