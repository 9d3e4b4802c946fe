"""Peers: the outputs of the other students of a cohort."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import Peers
from tutelage.terms import AttentionTransfer, CrossEntropy, Mimicry
from tutelage.training import Learner, fit
from tutelage.training.execution import Execution

ROLES = ("logits", "stage1")


@pytest.fixture
def nets(tiny_model: Callable[..., Tapped]) -> list[Tapped]:
    return [tiny_model(seed=seed) for seed in range(3)]


@pytest.fixture
def cohort(nets: list[Tapped], batch: Batch) -> dict[Tapped, Outputs]:
    return {net: net.tap(batch.inputs, ROLES) for net in nets}


def test_outputs_of_one_peer_are_those_for_the_batch(
    nets: list[Tapped], cohort: dict[Tapped, Outputs], batch: Batch
) -> None:
    for net in nets:
        net.register_forward_pre_hook(lambda *_: pytest.fail("the peer was run again"))
    outputs = Peers(nets[1])(batch, ROLES, cohort)
    assert outputs.members == ()
    for role in ROLES:
        assert torch.equal(outputs[role], cohort[nets[1]][role])
        assert cohort[nets[1]][role].requires_grad
        assert not outputs[role].requires_grad


def test_several_peers_give_member_outputs_and_mean_probabilities(
    nets: list[Tapped], cohort: dict[Tapped, Outputs], batch: Batch
) -> None:
    outputs = Peers(nets[2], nets[1])(batch, ROLES, cohort)
    assert len(outputs.members) == 2
    for member, net in zip(outputs.members, (nets[2], nets[1]), strict=True):
        for role in ROLES:
            assert torch.equal(member[role], cohort[net][role])
            assert not member[role].requires_grad
    mean = sum(cohort[net]["logits"].softmax(1) for net in nets[1:]) / 2
    torch.testing.assert_close(outputs.log_probs().exp(), mean)
    assert not outputs["logits"].requires_grad


def test_gradients_do_not_reach_peers(nets: list[Tapped], cohort: dict[Tapped, Outputs], batch: Batch) -> None:
    teacher_outputs = Peers(nets[1], nets[2])(batch, ("logits",), cohort)
    Mimicry()(cohort[nets[0]], teacher_outputs, batch).sum().backward()
    assert all(parameter.grad is not None for parameter in nets[0].parameters())
    assert all(parameter.grad is None for net in nets[1:] for parameter in net.parameters())


@pytest.mark.parametrize(("peers", "text"), [((2,), "1 of 1 peers"), ((1, 2), "1 of 2 peers")])
def test_peer_outside_the_fit_is_refused(
    peers: tuple[int, ...], text: str, nets: list[Tapped], cohort: dict[Tapped, Outputs], batch: Batch
) -> None:
    del cohort[nets[2]]
    with pytest.raises(TutelageError, match=f"{text} are not learners of this fit; fit them together"):
        Peers(*(nets[peer] for peer in peers))(batch, ROLES, cohort)


def test_peers_without_a_model_is_refused() -> None:
    with pytest.raises(TutelageError, match="at least one other model"):
        Peers()


def test_peers_has_no_state_and_no_models(nets: list[Tapped]) -> None:
    source = Peers(nets[0])
    source.after_step()
    source.load_state_dict({})
    assert source.state_dict() == {}
    assert source.models == ()


def test_attention_transfer_between_peers_in_two_fits(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    """The first fit builds the terms, the second reads reduced teacher features."""
    nets = [tiny_model(seed=1), tiny_model(seed=2, width=6)]
    pairs = (("stage1", "stage1"), ("stage2", "stage2"))
    learners = [
        Learner(net, Peers(peer), {"ce": CrossEntropy(), "at": 9 * AttentionTransfer(pairs)}, name=name)
        for net, peer, name in zip(nets, nets[::-1], "ab", strict=True)
    ]
    values = []
    for _ in range(2):
        fit_result = fit(
            *learners, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), execution=Execution.on(on_cpu)
        )
        values += [entry["at"] for entry in fit_result.history[-1]["learners"].values()]
    assert min(values) > 0
    assert values[0] == pytest.approx(values[1])  # the term is symmetric
    assert values[2] == pytest.approx(values[3])
