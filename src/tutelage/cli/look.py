"""The commands that inspect: a network, a data set, and what is available."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.options import PATH, Json, Mean, Std, TrustAll
from tutelage.config import OBJECT_PREFIX, Config, ExtraEvaluation, Normalization, read_config
from tutelage.errors import TutelageError, TutelageWarning, unknown

if TYPE_CHECKING:
    from tutelage.data import Data
    from tutelage.runs.models import TrainedModel

ANY_TASK = "any"  # of methods that train for whatever the data's targets are for
NO_EVIDENCE = "-"

Test = Annotated[float | None, typer.Option(help="Share of the samples for testing, if there is no test part.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out image files that cannot be decoded.")]


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
        str, typer.Option(help="Evaluate under PGD attacks of these radii too: 0.01,0.03.", metavar="RADII")
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
    asked: dict[str, Any] = {"corruptions": corruptions, "pgd": pgd or (), "ood": ood, "samples": samples}
    extra = ExtraEvaluation(**asked)
    from tutelage.config import Hardware
    from tutelage.evaluation import cost_of
    from tutelage.report.console import side_console
    from tutelage.runs.classes import check_classes, with_classes
    from tutelage.tasks import Compute, find
    from tutelage.tasks import evaluate as measure
    from tutelage.training.hardware import resolve

    opened = _data_for(run, data, image_size, test, skip_bad)
    if split not in opened.splits:
        held_out = "A split held out during training is drawn in the run, whose result.json has its accuracy."
        raise unknown("split", split, opened.splits, held_out if split == "validation" else "")
    on = resolve(Hardware(device=device)).device
    names = [run, *([teacher] if teacher else [])]
    trained, *others = _open(names, opened, mean, std, trust)
    model = trained.model.to(on)
    other = others[0].model.to(on) if others else None
    opened = with_classes(opened, model, trained.classes)
    task = find(trained.task or opened.targets.task)
    if "logits" in task.roles:
        check_classes(run, trained.classes, opened)
    if other is not None and (misfit := task.misfit(other, opened)):
        side_console().print(f"teacher {teacher}: not compared: {misfit}", highlight=False)
        other = None
    evaluated = opened.splits[split]
    if not bool(evaluated.targets.labelled(evaluated.labels).any()):
        side_console().print(f"no {split} sample of {opened.name} has a label", highlight=False)
    measured = measure(model, opened, split=split, device=on, teacher=other, task=task.name)
    measured |= task.evaluate_extra(model, opened, extra, Compute(on), split=split)
    result = {**measured, "cost": cost_of(model, task.example(model, opened))}
    if json_:
        print(json.dumps(result, allow_nan=False))
        return
    from rich.table import Table

    from tutelage.report.console import Terminal

    table = Table(title=f"{run} on the {split} split of {opened.name}", show_header=False)
    by_class = result.pop("per_class_accuracy", {})
    for name, value in {**result, **result.pop("cost")}.items():
        if value is not None and not isinstance(value, dict):
            table.add_row(name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else str(value))
    if known := {name: share for name, share in by_class.items() if share is not None}:
        table.add_row("accuracy by class", _shares(known))
    if attacked := result.get("pgd"):
        table.add_row("accuracy by radius", _shares(attacked))
    for name, each in (result.get("corruptions") or {}).items():
        table.add_row(f"under {name.replace('_', ' ')}", "  ".join(f"{share:.3f}" for share in each))
    Terminal().print(table)


def _shares(named: dict[str, float]) -> str:
    return "  ".join(f"{name} {share:.3f}" for name, share in named.items())


def _data_for(
    run: str, spec: str | None, image_size: int | None, test: float | None = None, skip_bad: bool = False
) -> Data:
    """The data set that is named, or else that of the run.

    Raises:
        TutelageError: there is no such data set, no trained network ``run``, or nothing says on what it was trained.
    """
    from tutelage.data import open_data
    from tutelage.runs.folder import CONFIG
    from tutelage.runs.locate import locate, run_folder

    locate(run)  # before anything is asked of the data: a misspelt path is the commoner mistake
    if spec is None:
        folder = run_folder(run)
        fields = read_config(folder / CONFIG) if folder is not None else {}
        read = Config(**{name: fields[name] for name in ("data", "image_size", "test", "skip_bad") if name in fields})
        if "data" not in fields or read.data.startswith(OBJECT_PREFIX):
            raise TutelageError(f"{run} does not record a data set that can be opened by name; name one with --data")
        spec, skip_bad = read.data, skip_bad or read.skip_bad
        image_size = read.image_size if image_size is None else image_size
        test = read.test if test is None else test
    return open_data(spec, image_size=image_size, test=test, skip_bad=skip_bad)


def _open(names: list[str], data: Data, mean: str | None, std: str | None, trust: bool) -> list[TrainedModel]:
    """Trained networks; those whose weights do not record a normalization get the one given, and theirs is printed."""
    from tutelage.report.console import side_console
    from tutelage.runs.models import RECORDED, check_normalisation_used, open_trained
    from tutelage.runs.teachers import describe_normalisation
    from tutelage.trust import typed_specs

    fields: dict[str, Any] = {name: text for name, text in (("mean", mean), ("std", std)) if text is not None}
    given = Normalization(**fields).pair
    opened = [open_trained(name, data, given, trust or typed_specs(*names)) for name in names]
    if given is not None:
        check_normalisation_used("--mean and --std", opened)
    for name, one in zip(names, opened, strict=True):
        if one.normalisation != RECORDED:
            side_console().print(describe_normalisation(name, one), markup=False, highlight=False)
    return opened


def export(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, or MODEL@WEIGHTS.")],
    onnx: Annotated[Path, typer.Option(help="ONNX file to write: pixels in [0, 1] to logits.", **PATH)],
    data: Annotated[
        str | None,
        typer.Option(help="Data set with the classes and image size.  [default: that of the run]"),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    trust: TrustAll = False,
) -> None:
    """Export a trained network to ONNX, including its normalization."""
    from tutelage.models.export import export_onnx
    from tutelage.report.console import say
    from tutelage.runs.classes import check_classes, with_classes
    from tutelage.runs.loading_script import loading_script
    from tutelage.runs.models import weights_metadata
    from tutelage.tasks import find

    opened = _data_for(run, data, None)
    (trained,) = _open([run], opened, mean, std, trust)
    opened = with_classes(opened, trained.model, trained.classes)
    check_classes(run, trained.classes, opened)
    export_onnx(trained.model, opened.image_shape, onnx, classes=opened.classes)
    say(onnx)
    task = find(trained.task or opened.targets.task)
    if task.decision:
        say(f"the file holds the network alone and not the decision rule of {task.name}: {task.decision}")
    if trained.file is not None and trained.file.suffix == ".safetensors":
        about = weights_metadata(trained.spec, trained.model, opened, task)
        print(f"\n{loading_script(about, repr(str(trained.file)))}", end="")


def methods(
    name: Annotated[str | None, typer.Argument(help="Show the page of this method.")] = None, json_: Json = False
) -> None:
    """List the methods, or describe one."""
    from tutelage.methods import find, installed
    from tutelage.report.console import print_table, say

    if name is not None:
        chosen = find(name)
        say(f"{chosen.name} ({chosen.family}; {chosen.paper})")
        say(f"task: {chosen.task or ANY_TASK}; written from: {chosen.evidence or NO_EVIDENCE}")
        say(f"\n{inspect.getdoc(chosen.function)}\n\nparameters:")
        say("\n".join(f"  {key}{text}" for key, text in chosen.parameters.items()) or "  none")
        return
    found = []
    for each in installed():
        try:
            found.append(find(each))
        except TutelageError as error:  # somebody's broken package is no reason to hide the others
            warnings.warn(str(error), TutelageWarning, stacklevel=1)
    if json_:
        print(
            json.dumps(
                [
                    {
                        "name": m.name,
                        "family": m.family,
                        "task": m.task,
                        "evidence": m.evidence,
                        "paper": m.paper,
                        "summary": m.summary,
                        "parameters": list(m.parameters),
                    }
                    for m in found
                ]
            )
        )
        return
    rows = [(m.name, m.family, m.task or ANY_TASK, m.summary, m.paper, m.evidence or NO_EVIDENCE) for m in found]
    print_table(("method", "family", "task", "what it does", "paper", "written from"), rows)


def tasks(json_: Json = False) -> None:
    """List the tasks that networks are trained for, with their metrics; the first of them is the main one."""
    from tutelage.report.console import print_table
    from tutelage.tasks import Metric, find, installed

    found = []
    for each in installed():
        try:
            found.append(find(each))
        except TutelageError as error:  # a package that cannot be imported does not hide the others
            warnings.warn(str(error), TutelageWarning, stacklevel=1)
    listed: list[dict[str, Any]] = [
        {
            "name": task.name,
            "summary": task.summary,
            "metrics": {
                name: {"title": metric.title, "better": metric.better, "share": metric.share}
                for name, metric in task.metrics.items()
                if isinstance(metric, Metric)
            },
        }
        for task in found
    ]
    if json_:
        print(json.dumps(listed))
        return
    rows = [(each["name"], each["summary"], _metrics(each["metrics"])) for each in listed]
    print_table(("task", "what it is", "metrics"), rows)


def _metrics(metrics: dict[str, dict[str, Any]]) -> str:
    """Their names, with an arrow to the end that is good."""
    arrows = {"higher": " ↑", "lower": " ↓", None: ""}
    return ", ".join(name + arrows[metric["better"]] for name, metric in metrics.items())


def models(json_: Json = False) -> None:
    """List the available networks."""
    from tutelage.models.zoo import families
    from tutelage.report.console import print_table

    rows = [(", ".join(f.examples), f.description, f.paper) for f in families().values()]
    rows += [
        ("module:attr", "your own class, function or nn.Module", ""),
        ("timm/NAME", "any model of timm (extra timm)", ""),
        ("hf/NAME", "any image classifier of Hugging Face transformers (extra hf)", ""),
    ]
    if json_:
        print(json.dumps([{"names": names, "description": text, "paper": paper} for names, text, paper in rows]))
        return
    print_table(("names", "what it is", "paper"), rows)


def data(
    spec: Annotated[
        str,
        typer.Argument(
            help="Data set: digits, barcodes, idx:FOLDER, npz:FILE, folder:PATH, hf:REPO, text:FOLDER, wav:FOLDER."
        ),
    ] = "digits",
    image_size: Annotated[
        int | None, typer.Option(min=4, help="Resize image files to this many pixels per side.")
    ] = None,
    test: Test = None,
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Describe a data set: classes, counts, mean and standard deviation."""
    from tutelage.data import open_data
    from tutelage.report.console import print_table

    opened = open_data(spec, image_size=image_size, test=test, skip_bad=skip_bad)
    summary = opened.summary()
    if json_:
        print(json.dumps(summary, allow_nan=False))
        return
    parts = list(summary["counts"])
    rows = [(name, *(str(summary["counts"][part][c]) for part in parts)) for c, name in enumerate(summary["classes"])]
    unlabelled = [int((~split.targets.labelled(split.labels)).sum()) for split in opened.splits.values()]
    if any(unlabelled):
        rows.append(("without a label", *map(str, unlabelled)))
    rows.append(("all", *(str(summary["samples"][part]) for part in parts)))
    print_table((opened.targets.noun, *parts), rows)
    mean, std = ([round(value, 4) for value in summary[name]] for name in ("mean", "std"))
    shape = tuple(summary["image_shape"])
    normalised = f"; training {opened.modality.scale}: mean {mean}, std {std}" if opened.modality.scale else ""
    print(f"{opened.modality.noun} {shape}, for {opened.targets.task}{normalised}")
