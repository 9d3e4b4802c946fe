"""The neural filter: its layers, its threshold, and the empty prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.methods.ghnd.test_bottleneck import detector, run_of
from tests.tasks.scenes import scene_data
from tutelage.config import Hardware
from tutelage.data.targets.boxes import DIFFICULT
from tutelage.methods.ghnd import ghnd
from tutelage.methods.ghnd.neural_filter import NeuralFilter, object_probability
from tutelage.methods.ghnd.objects import ObjectCrossEntropy, has_object, roc_auc, threshold_for
from tutelage.methods.ghnd.split import SplitNetwork
from tutelage.methods.ghnd.surgery import bottleneck, neural_filter
from tutelage.models.centre_points import decode
from tutelage.models.outputs import Outputs
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped


def filtered(seed: int = 1) -> tuple[Tapped, NeuralFilter]:
    model, images = detector(seed), torch.rand(2, 1, 64, 64)
    bottleneck.apply(model.module, images, layer="stage1", channels=3)
    neural_filter.apply(model.module, images, layer="stage1")
    module = model.module.get_submodule("stage1.filter")
    assert isinstance(module, NeuralFilter)
    return model.rewrapped().eval(), module


def test_layers_of_the_paper() -> None:
    module = NeuralFilter(64, (200, 266))
    assert module.features[0].output_size == (64, 64)
    assert module.classifier.in_features == 1024
    assert module(torch.rand(2, 64, 200, 266)).shape == (2, 2)


def test_images_below_the_threshold_have_no_detection_and_the_others_are_unchanged() -> None:
    model, module = filtered()
    images = torch.rand(8, 1, 64, 64) * torch.linspace(0.1, 1, 8)[:, None, None, None]
    with torch.no_grad():
        whole = model(images)
        probabilities = object_probability(model.tap(images, ("filter",))["filter"])
        module.threshold.fill_(float(probabilities.median()))
        outputs = model(images)
    empty = probabilities < module.threshold
    assert 0 < int(empty.sum()) < 8
    assert torch.equal(outputs[~empty], whole[~empty])
    detections = decode(outputs, (64, 64))
    assert bool((detections[empty][..., 5] == -1).all())
    assert bool((detections[empty][..., 4] == 0).all())
    assert bool((detections[~empty][..., 5] >= 0).any())
    halves = SplitNetwork(model)
    messages = halves.send(images)
    assert [message is None for message in messages] == empty.tolist()
    with torch.no_grad():  # one at a time: a last digit that depends on the batch can change a rounded value
        single = torch.cat([model(image[None]) for image in images])
    received = halves.receive(messages, images)
    torch.testing.assert_close(received[~empty], single[~empty], atol=1e-5, rtol=1e-5)
    assert torch.equal(decode(received, (64, 64))[empty][..., 4:], detections[empty][..., 4:])
    assert bool((model.train()(images) > -1e3).all())


def test_filter_is_built_again_from_the_record_with_its_threshold() -> None:
    model, module = filtered()
    module.threshold.fill_(0.6)
    images = torch.rand(4, 1, 64, 64)
    again = reapply(detector(8).module, applied_operations(model.module), images).eval()
    again.load_state_dict(model.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(images), model.module(images))


def test_encoder_does_not_run_for_the_filter_alone() -> None:
    model, _ = filtered()
    images, calls = torch.rand(2, 1, 64, 64), list[int]()
    model.trace(images)
    model.module.get_submodule("stage1.encoder").register_forward_hook(lambda *_: calls.append(1))
    model.tap(images, ("filter",))
    assert calls == []


def test_labels_are_objects_with_sides_above_a_pixel(batch_of: Any) -> None:
    boxes = torch.tensor(
        [[[0, 0, 9, 9, 0, 0]], [[0, 0, 9, 1, 0, 0]], [[0, 0, 9, 9, 1, DIFFICULT]], [[0, 0, 0, 0, -1, 0]]]
    ).float()
    assert has_object(boxes).tolist() == [True, False, False, False]
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    value = ObjectCrossEntropy()(Outputs(None, {"filter": logits}), None, batch_of(boxes))
    expected = [-logits[n].log_softmax(0)[int(n == 0)] for n in range(4)]
    torch.testing.assert_close(value, torch.stack(expected))


def test_area_under_the_curve_and_threshold_equal_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(60, generator=generator) * 12).round() / 12
    positive = torch.rand(60, generator=generator) < 0.4
    pairs = [(p, n) for p in scores[positive].tolist() for n in scores[~positive].tolist()]
    expected = sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)
    assert roc_auc(scores, positive) == pytest.approx(expected)
    assert roc_auc(positive.float(), positive) == 1
    for recall in (0.0, 0.5, 0.8, 0.95, 1.0):
        threshold = threshold_for(scores, positive, recall)
        assert float((scores[positive] >= threshold).float().mean()) >= recall
        larger = [s for s in scores[positive].tolist() if s > threshold]
        assert not larger or float((scores[positive] >= min(larger)).float().mean()) < max(recall, 1e-9) or recall == 0


def test_filter_learns_while_everything_else_stays_frozen(on_cpu: Hardware, state_of: Any) -> None:
    data = scene_data(96, 48, 64, seed=4)
    run = run_of(data, on_cpu, detector(2, width=0.0625), epochs=8)
    seen: list[dict[str, torch.Tensor]] = []
    fit = run.fit

    def spied(*learners: Any, **options: Any) -> Any:
        if "filter" in learners[0].terms:
            seen.append(state_of(learners[0].model))
        return fit(*learners, **options)

    run.fit = spied  # type: ignore[method-assign]
    student = ghnd(run, filter_recall=0.9, filter_lr=0.05, lr=0.01)
    after = state_of(student)
    changed = {name for name, value in seen[0].items() if not torch.equal(value, after[name])}
    assert changed
    assert all(".filter." in name for name in changed)
    notes = run.notes["filter"]
    assert notes["roc_auc"] > 0.7
    assert notes["recall"] >= 0.9
    scores = [record["learners"]["student"]["validation_roc_auc"] for record in run.fits[1].history]
    assert notes["roc_auc"] == pytest.approx(max(scores), abs=1e-6)  # the best epoch is used
    assert float(student.module.get_submodule("stage1.filter").threshold) == pytest.approx(notes["threshold"])


def test_filter_without_held_out_images_or_boxes_is_refused(tiny_data: Any, on_cpu: Hardware, refused: Any) -> None:
    from dataclasses import replace

    from tests.runs.pairs import zoo_network
    from tutelage.config import Recipe
    from tutelage.training import Run

    data = replace(scene_data(16, 8, 32), validation=None)
    with refused("filter_recall=0.9 needs a held-out split"):
        ghnd(run_of(data, on_cpu, detector()), filter_recall=0.9)
    make = zoo_network("resnet8x0.25")
    run = Run(tiny_data, make, [make()], recipe=Recipe(epochs=1), hardware=on_cpu)
    with refused("needs boxes"):
        ghnd(run, filter_recall=0.9)
