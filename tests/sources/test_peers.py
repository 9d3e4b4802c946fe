"""The other students of a cohort."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import Peers
from tutelage.terms import AttentionTransfer, CrossEntropy, Mimicry
from tutelage.training import Learner, fit

ROLES = ("logits", "stage1")


@pytest.fixture
def nets(tiny_model: Callable[..., Tapped]) -> list[Tapped]:
    return [tiny_model(seed=seed) for seed in range(3)]


@pytest.fixture
def cohort(nets: list[Tapped], batch: Batch) -> dict[Tapped, Outputs]:
    return {net: net.tap(batch.inputs, ROLES) for net in nets}


def test_one_peer_gives_what_it_gave_for_this_batch(
    nets: list[Tapped], cohort: dict[Tapped, Outputs], batch: Batch
) -> None:
    for net in nets:  # a peer is not run again
        net.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    found = Peers(nets[1])(batch, ROLES, cohort)
    assert found.members == ()
    for role in ROLES:
        assert torch.equal(found[role], cohort[nets[1]][role])
        assert cohort[nets[1]][role].requires_grad
        assert not found[role].requires_grad


def test_several_peers_are_members_and_their_mean(
    nets: list[Tapped], cohort: dict[Tapped, Outputs], batch: Batch
) -> None:
    found = Peers(nets[2], nets[1])(batch, ROLES, cohort)
    assert len(found.members) == 2
    for member, net in zip(found.members, (nets[2], nets[1]), strict=True):
        for role in ROLES:
            assert torch.equal(member[role], cohort[net][role])
            assert not member[role].requires_grad
    mean = sum(cohort[net]["logits"].softmax(1) for net in nets[1:]) / 2
    torch.testing.assert_close(found.log_probs().exp(), mean)
    assert not found["logits"].requires_grad


def test_no_peer_learns_from_teaching(nets: list[Tapped], cohort: dict[Tapped, Outputs], batch: Batch) -> None:
    taught = Peers(nets[1], nets[2])(batch, ("logits",), cohort)
    Mimicry()(cohort[nets[0]], taught, batch).sum().backward()
    assert all(parameter.grad is not None for parameter in nets[0].parameters())
    assert all(parameter.grad is None for net in nets[1:] for parameter in net.parameters())


@pytest.mark.parametrize(("peers", "text"), [((2,), "1 of 1 peers"), ((1, 2), "1 of 2 peers")])
def test_a_model_that_is_not_in_the_fit_is_refused(
    peers: tuple[int, ...], text: str, nets: list[Tapped], cohort: dict[Tapped, Outputs], batch: Batch
) -> None:
    del cohort[nets[2]]
    with pytest.raises(ValueError, match=f"{text} are not learners of this fit; fit them together"):
        Peers(*(nets[peer] for peer in peers))(batch, ROLES, cohort)


def test_without_a_peer_there_is_nobody() -> None:
    with pytest.raises(ValueError, match="at least one other model"):
        Peers()


def test_it_has_nothing_to_keep_and_runs_nothing_itself(nets: list[Tapped]) -> None:
    source = Peers(nets[0])
    source.after_step()
    source.load_state_dict({})
    assert source.state_dict() == {}
    assert source.models == ()


def test_they_pay_attention_to_each_other_in_one_fit_after_another(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    """The terms are built in the first, and ask for digests in the second."""
    nets = [tiny_model(seed=1), tiny_model(seed=2, width=6)]
    pairs = (("stage1", "stage1"), ("stage2", "stage2"))
    learners = [
        Learner(net, Peers(peer), {"ce": CrossEntropy(), "at": 9 * AttentionTransfer(pairs)}, name=name)
        for net, peer, name in zip(nets, nets[::-1], "ab", strict=True)
    ]
    found = []
    for _ in range(2):
        fitted = fit(*learners, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
        found += [entry["at"] for entry in fitted.history[-1]["learners"].values()]
    assert min(found) > 0
    assert found[0] == pytest.approx(found[1])  # it is symmetric
    assert found[2] == pytest.approx(found[3])
