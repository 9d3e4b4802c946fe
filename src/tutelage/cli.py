"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tutelage.config import DEFAULT_METHOD, Config, read_config
from tutelage.errors import TutelageError, TutelageWarning

if TYPE_CHECKING:
    from tutelage.data import Data

app = typer.Typer(
    help="Train neural networks under a teacher.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # of the click that this typer carries


def main() -> NoReturn:
    """Run the command line: 0 when all went well, 2 and one line for what the user can mend, 130 when stopped."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", TutelageWarning)
        warnings.showwarning = _show_warning
        try:
            code = app(standalone_mode=False)  # some typers raise at Ctrl-C, others give 130 back
        except TutelageError as error:
            _fail(str(error))
        except UsageError as error:
            _fail(error.format_message())  # type: ignore[attr-defined]
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
    if code == 130:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str) -> NoReturn:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(2)


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    if issubclass(category, TutelageWarning):
        print(f"warning: {message}", file=sys.stderr)


# --- the commands that train: their options are the fields of the configuration


def _options(**renamed: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of ``Config``, under the field's name or another one."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        shown = [p for p in own if p.kind is not p.VAR_KEYWORD]
        for name, field in Config.model_fields.items():
            if name in ("settings", "method") and name not in renamed:
                continue
            option = "--" + renamed.get(name, name).replace("_", "-")
            default = "" if field.default in (None, ()) else f" [default: {field.default}]"
            text = (field.description or "") + default
            if field.annotation in (bool, bool | None):
                kind: Any = Annotated[bool | None, typer.Option(f"{option}/--no-{option[2:]}", help=text)]
            elif name in ("teacher", "milestones"):
                kind = Annotated[list[str] | None, typer.Option(option, help=text, metavar="TEXT")]
            else:
                kind = Annotated[str | None, typer.Option(option, help=text, metavar=_metavar(field.annotation))]
            shown.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

        def command(**values: Any) -> None:
            fields = {name: values.pop(name) for name in Config.model_fields if name in values}
            function(fields={name: value for name, value in fields.items() if value not in (None, [])}, **values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in shown}
        return command

    return decorate


def _metavar(annotation: Any) -> str:
    names = {int: "INT", float: "FLOAT", int | None: "INT", float | None: "FLOAT"}
    return names.get(annotation, "TEXT")


Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run.  [default: runs/METHOD-seedN]")]
File = Annotated[
    Path | None, typer.Option("--config", help="TOML or YAML file of the same fields; options override it.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="A parameter of the method, as name=value; repeatable.")]


@app.command()
@_options(student="model", method="method")
def train(out: Out = None, config: File = None, set_: Sets = None, json_: Json = False, **fields: Any) -> None:
    """Train a network without a teacher: a future teacher, or a student to compare with."""
    _train("train", out, config, set_, json_, fields["fields"])


@app.command()
@_options(student="student", method="method")
def distill(out: Out = None, config: File = None, set_: Sets = None, json_: Json = False, **fields: Any) -> None:
    """Train a student under a teacher."""
    _train("distill", out, config, set_, json_, fields["fields"])


def _train(
    verb: str,
    out: Path | None,
    file: Path | None,
    sets: list[str] | None,
    as_json: bool,
    fields: dict[str, Any],
) -> None:
    read = read_config(file) if file else {}
    settings = {**(read.pop("settings", None) or {}), **_settings(sets or [])}
    config = Config(**{"method": DEFAULT_METHOD[verb], **read, **fields, "settings": settings})
    out = out or Path("runs") / f"{config.method}-seed{config.seed}"
    from tutelage.report.console import show, side_console, watching
    from tutelage.runs import execute
    from tutelage.runs.commands import as_python

    console = side_console()
    if not as_json:
        console.print(f"[dim]# in Python:[/]\n[dim]{as_python(config, out)}[/]", highlight=False)
    with watching(console, quiet=as_json) as report:
        result = execute(config, out, report=report)
    if as_json and result.metrics:
        print(json.dumps({**result.metrics, "folder": str(out)}, allow_nan=False))
    elif result.metrics:  # of several processes only the first has measured
        show(result)


def _settings(sets: list[str]) -> dict[str, Any]:
    import yaml

    settings = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise TutelageError(f"--set takes name=value, got {text!r}; for instance --set temperature=2")
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            settings[name.strip()] = value
    return settings


# --- the commands that look


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, MODEL@WEIGHTS, timm/NAME or hf/NAME.")],
    data: Annotated[str | None, typer.Option(help="Data set.  [default: the run's own]")] = None,
    part: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    teacher: Annotated[str | None, typer.Option(help="Another network to be compared with.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    image_size: Annotated[int | None, typer.Option(help="Resize image files to this.")] = None,
    json_: Json = False,
) -> None:
    """Measure a trained network."""
    from tutelage.config import Hardware
    from tutelage.evaluation import cost_of
    from tutelage.evaluation import evaluate as measure
    from tutelage.runs import open_model
    from tutelage.training.hardware import resolve

    opened = _data_for(run, data, image_size)
    on = resolve(Hardware(device=device)).device
    model = open_model(run, opened).to(on)
    other = open_model(teacher, opened).to(on) if teacher else None
    result = {
        **measure(model, opened, part=part, device=on, teacher=other),
        "cost": cost_of(model, opened, on),
    }
    if json_:
        print(json.dumps(result, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{run} on the {part} part of {opened.name}", show_header=False)
    by_class = result.pop("per_class_accuracy")
    for name, value in {**result, **result.pop("cost")}.items():
        table.add_row(name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else str(value))
    table.add_row(
        "accuracy by class", "  ".join(f"{name} {share:.3f}" for name, share in by_class.items() if share is not None)
    )
    Console().print(table)


def _data_for(run: str, spec: str | None, image_size: int | None) -> Data:
    """The data set that is named, or else the one that the run was trained on."""
    from tutelage.data import open_data

    if spec is None:
        file = Path(run) / "config.yaml"
        fields = read_config(file) if file.is_file() else {}
        spec, image_size = str(fields.get("data", "given:")), image_size or fields.get("image_size")
        if spec.startswith("given:"):
            raise TutelageError(f"{run} does not say which data to open; name it with --data")
    return open_data(spec, image_size=image_size)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, or MODEL@WEIGHTS.")],
    onnx: Annotated[Path, typer.Option(help="File to write; takes raw pixels in [0, 1] and gives logits.")],
    data: Annotated[
        str | None,
        typer.Option(help="Data set that tells classes and image shape.  [default: the run's own]"),
    ] = None,
) -> None:
    """Write a trained network as ONNX, its normalisation included."""
    from tutelage.models.export import export_onnx
    from tutelage.runs import open_model

    opened = _data_for(run, data, None)
    export_onnx(open_model(run, opened), opened.image_shape, onnx)
    print(onnx)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One of them, for its page.")] = None, json_: Json = False
) -> None:
    """List the methods, or tell about one."""
    from tutelage.methods import find, installed
    from tutelage.report.console import print_table

    if name is not None:
        chosen = find(name)
        print(f"{chosen.name} ({chosen.family}; {chosen.paper})\n\n{inspect.getdoc(chosen.function)}\n\nparameters:")
        print("\n".join(f"  {key}{text}" for key, text in chosen.parameters.items()) or "  none")
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
                        "paper": m.paper,
                        "summary": m.summary,
                        "parameters": list(m.parameters),
                    }
                    for m in found
                ]
            )
        )
        return
    print_table(("method", "family", "what it does", "paper"), [(m.name, m.family, m.summary, m.paper) for m in found])


@app.command()
def models(json_: Json = False) -> None:
    """List the networks."""
    from tutelage.models.zoo import families
    from tutelage.report.console import print_table

    rows = [(", ".join(f.examples), f.about, f.paper) for f in families().values()]
    rows += [
        ("module:attr", "your own class, function or nn.Module", ""),
        ("timm/NAME", "any of timm's (extra timm)", ""),
        ("hf/NAME", "any image classifier of transformers (extra hf)", ""),
    ]
    if json_:
        print(json.dumps([{"names": names, "description": text, "paper": paper} for names, text, paper in rows]))
        return
    print_table(("names", "what it is", "paper"), rows)


@app.command("data")
def data_(
    spec: Annotated[str, typer.Argument(help="digits, idx:FOLDER, npz:FILE, folder:PATH or hf:REPO")] = "digits",
    image_size: Annotated[int | None, typer.Option(help="Resize image files to this.")] = None,
    json_: Json = False,
) -> None:
    """Tell what a data set holds: classes, counts, mean and standard deviation."""
    from tutelage.data import open_data
    from tutelage.report.console import print_table

    summary = open_data(spec, image_size=image_size).summary()
    if json_:
        print(json.dumps(summary, allow_nan=False))
        return
    parts = list(summary["counts"])
    rows = [(name, *(str(summary["counts"][part][c]) for part in parts)) for c, name in enumerate(summary["classes"])]
    rows.append(("all", *(str(summary["samples"][part]) for part in parts)))
    print_table(("class", *parts), rows)
    mean, std = ([round(value, 4) for value in summary[name]] for name in ("mean", "std"))
    shape = tuple(summary["image_shape"])
    print(f"images {shape}; of the training part's pixels in [0, 1]: mean {mean}, std {std}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("runs/demo"),
    data: Annotated[str, typer.Option(help="Data set.")] = "digits",
    noise: Annotated[str, typer.Option(help="Share of the training labels made wrong.")] = "0.4",
    teacher: Annotated[str, typer.Option(help="The teacher's network.")] = "resnet14x0.5",
    student: Annotated[str, typer.Option(help="The students' network.")] = "resnet8x0.5",
    methods: Annotated[list[str] | None, typer.Option(help="Repeatable.  [default: those of the study]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of every network.")] = 20,
    augment: Annotated[bool, typer.Option(help="Crops and flips.")] = False,
    json_: Json = False,
) -> None:
    """Compare the study's methods with a plain student where labels are wrong."""
    from tutelage.report.console import side_console
    from tutelage.report.demo import run_demo

    config = Config(data=data, noise=noise, student=student, epochs=epochs, augment=augment)
    run_demo(config, methods, list(range(seeds)), out, teacher=teacher, console=side_console(), as_json=json_)
