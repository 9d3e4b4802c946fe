"""The code of docs/own-loop.md runs, with the real Lightning and the real Hugging Face Trainer."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own-loop.md"
BLOCKS = re.findall(r"```python ?(\w*)\n(.*?)```", PAGE.read_text(), re.S)

# Run after the imports and networks of the page, and after each block.
BEFORE = """
import copy
def state_of(module):
    return {name: value.clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}
def changed(before, module):
    return [name for name, value in state_of(module).items() if not torch.equal(value, before[name])]
def counted(source):
    calls, after_step = [], source.after_step
    source.after_step = lambda: calls.append(after_step())
    return calls
before = state_of(teacher)
torch.manual_seed(1)
"""
AFTER = {
    "": """
assert changed(before, teacher) == []
assert not any(module.training for module in teacher.modules())
assert list(losses) == ["ce", "kd", "loss"]
assert torch.load("student.pt").keys() == convnet(8).state_dict().keys()
assert per_sample.shape == (4,) and loss.shape == pixels.shape == () and teacher_outputs.shape == (4, 10)
assert student_logits.grad is not None and not teacher_outputs.requires_grad
""",
    "lightning": """
assert changed(before, teacher) == []
assert set(trainer.logged_metrics) == {"ce", "kd", "loss"}
assert trainer.global_step == 8
assert not any(layer.training for layer in teacher.modules())
assert module.distiller.student.module[1].num_batches_tracked == 8
assert not any(key.startswith("distiller.source") for key in module.state_dict())
assert len(module.state_dict()) == len(convnet(8).state_dict())
assert module(images[:4]).shape == (4, 10)

progress = []
student = convnet(8)
average = EMA(student, decay=0.5)
updates = counted(average)
terms = {"ce": CrossEntropy(), "consistency": (lambda p: progress.append(p) or 1 - p) * SoftTargets(1.0)}
module = DistillationModule(Distiller(student, average, terms), lambda parameters: torch.optim.SGD(parameters, 0.1))
options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
trainer = L.Trainer(max_epochs=2, accumulate_grad_batches=2, num_sanity_val_steps=0, **options)
trainer.fit(module, loader, DataLoader(TensorDataset(images, labels), batch_size=64))
assert len(updates) == trainer.global_step == 4
assert sorted(set(progress)) == [0.0, 0.25, 0.5, 0.75], progress
assert {"val_ce", "val_consistency", "val_loss"} <= set(trainer.logged_metrics)
assert changed(state_of(average.models[0].module), student)
L.Trainer(**options).validate(module, loader)
""",
    "transformers": """
assert trainer.state.global_step == 8
reports = [entry for entry in trainer.state.log_history if "kd" in entry]
assert [set(entry) >= {"loss", "ce", "kd", "at", "hint"} for entry in reports] == [True, True]
for entry in reports:
    assert abs(entry["loss"] - sum(entry[name] for name in ("ce", "kd", "at", "hint"))) < 1e-3
assert all(torch.isfinite(p).all() for p in distiller.parameters())
saved = BertForSequenceClassification.from_pretrained("runs/bert/student")
assert all(torch.equal(value, saved.state_dict()[name]) for name, value in small.state_dict().items())
assert not any(module.training for module in large.modules())
assert all(p.grad is None for p in large.parameters())
result = trainer.predict(texts[:8])
assert result.predictions.shape == (8, 3), result.predictions
with torch.no_grad():
    expected = small.eval()(input_ids=torch.stack([t["input_ids"] for t in texts[:8]])).logits
assert torch.allclose(torch.from_numpy(result.predictions), expected, atol=1e-5)
assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_loss"]))
trainer.save_model("runs/bert/whole")
from safetensors.torch import load_file
assert load_file("runs/bert/whole/model.safetensors").keys() == distiller.state_dict().keys()

progress = []
network = bert(16, 1)
average = EMA(network, decay=0.5)
updates = counted(average)
terms = {"ce": CrossEntropy(), "consistency": (lambda p: progress.append(p) or 1 - p) * SoftTargets(1.0)}
arguments.gradient_accumulation_steps = 2
trainer = DistillationTrainer(Distiller(network, average, terms), arguments, train_dataset=texts)
trainer.train()
assert len(updates) == trainer.state.global_step == 4
assert sorted(set(progress)) == [0.0, 0.25, 0.5, 0.75], progress
from tutelage.errors import TutelageError
for model, settings, text in (
    (network, arguments, "given a BertForSequenceClassification"),
    (distiller, TrainingArguments("runs/bert", use_cpu=True), "remove_unused_columns=False"),
):
    try:
        DistillationTrainer(model, settings)
    except TutelageError as error:
        assert text in str(error), error
    else:
        raise AssertionError(text)
""",
}


def test_every_package_of_the_page_is_tested() -> None:
    assert {package for package, _ in BLOCKS} == set(AFTER)


@pytest.mark.parametrize("package", AFTER)
def test_page_runs(package: str, tmp_path: Path) -> None:
    """In a separate process: these packages are slow to import, and change logging and warnings globally."""
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    page = [code for name, code in BLOCKS if name in ("", package)]
    networks = next(number for number, code in enumerate(page) if "teacher, student =" in code)
    script = "\n".join([*page[: networks + 1], BEFORE, *page[networks + 1 :], AFTER[package]])
    (tmp_path / "page.py").write_text(script)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
