"""Automatic search of a student network for knowledge distillation, for texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field

from tutelage.data.conditions.condition import stream
from tutelage.data.modality import Tokens
from tutelage.errors import TutelageError
from tutelage.evaluation.cost import cost_of
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods.nas_kd.candidates import CANDIDATES
from tutelage.methods.nas_kd.loss import DistilledHeads, ExpectedSize, Heads
from tutelage.methods.nas_kd.networks.cells import EDGES, Cells, cell_of, checked_cell
from tutelage.methods.nas_kd.probes import ProbedTeacher, train_probes
from tutelage.methods.nas_kd.search import HALF, Search, halves, is_choice, optimizer_for
from tutelage.methods.nas_kd.surgery.choose_cell import apply as choose_cell
from tutelage.models.random_state import seeded
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Zhang, Zhu, Yan, Gao, Xie 2020, ICPR", family="architecture search", evidence="abstract")
def nas_kd(
    run: Run,
    *,
    cell: str = "search",
    gamma: Share = 0.8,
    beta: NonNegative = 1.0,
    temperature: Positive = 5.0,
    search_epochs: Annotated[int, Field(ge=1)] | None = None,
    probe_epochs: Annotated[int, Field(ge=1)] = 5,
    choice_rate: Positive = 3e-4,
    choice_decay: NonNegative = 1e-3,
    cooling: Annotated[float, Field(gt=0, le=1)] = 0.98,
    skip_limit: Share = 0.5,
) -> Tapped:
    """NAS-KD style, after AdaBERT: search a small network for texts that learns well from this teacher, and train it.

        L   = L_k + beta L_E
        L_k = (1 - gamma) 1/k sum_i CE(s_i, y) + gamma sum_i w_i T^2 KL(t_j / T || s_i / T),  i <= k,  j = ceil(i L / k)
        L_E = E[k] / K  x  mean over edges of sum_o u_o (size_o + flops_o) / 2,  relative to the largest operation

    1. Probes: a linear classifier on the mean over the text of each of the L stages of the frozen teacher but the last,
       whose classifier is the teacher's. (Of a deep teacher tracing finds four stages; roles name others.) They give
       the logits t_j; w_i is the softmax over i of minus the mean cross-entropy of probe j on the training split, so
       that better layers count more.
    2. Search. The student is a search network such as ``cells-3-32``: K cells of nine edges, each with ten candidate
       operations (convolutions of 3, 5 and 7 tokens, the same with dilation 2, average and maximum of 3, skip, none),
       weighed by one matrix alpha for all cells. Each pass draws u, one-hot, from the Gumbel-softmax of alpha with
       straight-through gradients, and likewise the number k of cells; each cell has a head with logits s_i. In turn,
       the weights learn from one half of the training split (L_k), alpha and the weights of k from the other half (L),
       in first order. The temperature of the draws falls from epoch to epoch.
    3. The network of the most probable operations (never none) and number of cells is trained with new weights by L_k.

    The result is an ordinary network, named ``network`` in the notes, such as ``cells-2-32-41-457-1842``, which any
    method trains by that name. The notes also have its costs, with and without the token table, and the choice after
    each epoch (``search``); ``choice_half`` in ``samples.safetensors`` is 1 for the training samples of the second
    half. If the teacher has a token table of the student's size (``cells-3-32e128`` has a width of 128), the student
    starts with a copy of it, which is trained with the rest; otherwise its table is new (``table``). A search does not
    pay unless it beats random cells of the same size: compare with ``cell=random`` or cells of your own.

    Args:
        run: the run. Its epochs and recipe are those of step 3, its recipe also that of the weights in steps 1 and 2.
        cell: "search"; or "random", nine operations drawn by the seed, or a cell such as "41-457-1842": these leave out
            step 2 and have all K cells. The digits are none, skip, average, maximum, convolutions of 3, 5, 7, and of 3,
            5, 7 with dilation.
        gamma: the weight of the teacher, 0.8 [default in the code of PaddleSlim].
        beta: the weight of the size. The code has 4 and never adds the term; here L_E is at most 1 [inferred].
        temperature: T, 5 [default in the code], here for both sides.
        search_epochs: of step 2; ``None`` for those of the run.
        probe_epochs: of step 1.
        choice_rate, choice_decay: learning rate and weight decay of alpha by Adam [inferred, the defaults of DARTS].
            Short searches need a larger rate: with 3e-4, a hundred steps move an entry of alpha by at most 0.03.
        cooling: the temperature of the draws after e epochs is cooling^e [code].
        skip_limit: the search ends once the mean probability of a skip exceeds this, the usual failure of
            differentiable search; 1 never ends it.

    Evidence: only the abstract could be read: a search per task whose objective contains the distillation loss, then
    training with distillation, on classification of texts. Reconstructed: everything else follows AdaBERT (Chen et al.
    2020), the work of the same year with the same aim, as re-implemented in PaddleSlim; parts of its loss are [from
    memory].

    Deviations: from that code: both sides of the soft targets are tempered, with the factor T^2 (the code tempers the
    student alone); they are the divergence, which differs from the cross-entropy by the teacher's entropy and has the
    same gradient; the label loss is the mean over heads and not the sum, so that gamma means the same for every k; the
    size is in the loss. Tokens are normalised one by one (LayerNorm), since statistics of a batch would count padding.
    No edge is none at the end, and all edges remain. A text is one sequence; pairs of sentences are not read.
    """
    student, padding = run.student(), _padding(run)
    network = student.module
    if not isinstance(network, Cells) or not network.searching:
        raise TutelageError(
            f"nas_kd searches networks such as cells-2-32, and the student is a {type(network).__name__}; choose such "
            "a student, or give a chosen one to another method"
        )
    if cell not in ("search", "random"):
        checked_cell(cell)
    teacher = run.teacher()
    probed = train_probes(run, teacher, padding, probe_epochs)
    copied = copy_table(teacher, network)
    depth = len(network.cells)
    if cell == "random":
        numbers = stream("nas_kd", run.seed).integers(1, len(CANDIDATES), len(EDGES))
        cell = cell_of(numbers.tolist())
    elif cell == "search":
        cell, depth = searched_cell(
            run,
            student,
            probed,
            padding,
            loss={"gamma": gamma, "temperature": temperature},
            beta=beta,
            epochs=search_epochs or run.epochs,
            rate=choice_rate,
            decay=choice_decay,
            rule=Search(network, cooling, skip_limit),
        )
    fresh = run.student(1)
    copy_table(teacher, fresh.module)
    chosen = Tapped(choose_cell(fresh.module, run.example(fresh), cell=cell, depth=depth))
    name = f"cells-{depth}-{network.channels}"
    width = network.table.embedding_dim
    run.note(
        network=f"{name}{'' if width == network.channels else f'e{width}'}-{cell}",
        table="teacher" if copied else "new",
        probe_losses=list(probed.losses),
        **costs(run, chosen),
    )
    with seeded(run.seed):
        heads = Heads(depth - 1, network.channels, run.data.num_classes)
    term = DistilledHeads(heads, probed.roles, probed.losses, padding, gamma, temperature, searching=False)
    run.fit(Learner(chosen, run.frozen(probed.model), {"heads": term}))
    return chosen


def searched_cell(
    run: Run,
    student: Tapped,
    teacher: ProbedTeacher,
    padding: int,
    *,
    loss: dict[str, float],
    beta: float,
    epochs: int,
    rate: float,
    decay: float,
    rule: Search,
) -> tuple[str, int]:
    """Step 2: the cell and the number of cells.

    Args:
        run, student, teacher, padding: as in ``nas_kd``.
        loss: gamma and the temperature.
        beta: of the size.
        epochs, rate, decay: of the fit, and of the optimizer of the choice.
        rule: the update rule, with the search network.
    """
    network = rule.network
    train = run.data.train
    of_weights, of_choice = halves(train, run.seed)
    in_choice_half = torch.zeros(len(train), dtype=torch.uint8)
    in_choice_half[of_choice] = 1
    run.note_samples(choice_half=in_choice_half)
    with seeded(run.seed):
        heads = Heads(len(network.cells) - 1, network.channels, run.data.num_classes)
    arguments: dict[str, Any] = {"padding": padding, "searching": True, **loss}
    source = run.frozen(teacher.model)
    choice = Learner(
        Tapped(network),  # a second view of the same network
        source,
        {
            "heads": DistilledHeads(heads, teacher.roles, teacher.losses, trained=False, **arguments),
            "size": beta * ExpectedSize(network.channels),
        },
        trainable=is_choice,
        evaluated=False,
        name="choice",
    )
    weights = Learner(
        student,
        source,
        {"heads": DistilledHeads(heads, teacher.roles, teacher.losses, **arguments)},
        trainable=lambda name: not is_choice(name),
        evaluated=False,
    )
    fitted = run.fit(
        choice,
        weights,
        update=rule,
        data=replace(run.data, train=train.subset(of_weights)),
        streams={HALF: train.subset(of_choice)},
        until=rule.after_epoch,
        epochs=epochs,
        optimizer=optimizer_for(network, run.recipe, rate, decay),
        ema=None,
    )
    if len(rule.history) < len(fitted.history):  # the fit does not ask for an end after the last epoch
        rule.after_epoch(fitted.history)
    run.note(search=rule.history)
    return network.most_probable()


def copy_table(teacher: Tapped, network: torch.nn.Module) -> bool:
    """Copy the teacher's token table, if it has one of the size of the network's; whether it has."""
    own: torch.nn.Embedding = network.table  # type: ignore[assignment]
    tables = [module for module in teacher.modules() if isinstance(module, torch.nn.Embedding)]
    table = next((table for table in tables if table.weight.shape == own.weight.shape), None)
    if table is not None:
        with torch.no_grad():
            own.weight.copy_(table.weight)
    return table is not None


def costs(run: Run, model: Tapped) -> dict[str, Any]:
    """The costs of the chosen network, with and without its token table, as notes of the result."""
    with torch.no_grad():
        cost = cost_of(model, run.example(model, 1))
    table = sum(parameter.numel() for parameter in model.module.get_submodule("table").parameters())
    return {**cost, "parameters_without_table": cost["parameters"] - table}


def _padding(run: Run) -> int:
    modality = run.data.modality
    if not isinstance(modality, Tokens):
        raise TutelageError(f"nas_kd searches networks for texts, and {run.data.name} has {modality.noun}; use texts")
    return modality.padding
