"""Halftoning before a network under attacks that do and do not know of it: python -m experiments.halftone."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from experiments.nets import small_vgg
from experiments.paired import Experiment, main
from tutelage.attacks import PGD, Attack, Square
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.evaluation import predict
from tutelage.methods import find
from tutelage.models.attach import detach, input_layer
from tutelage.models.random_state import fixed_draws
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.training import Run

RADIUS, L2_RADIUS, STEPS, RANDOM_STEPS, DRAWS = 0.05, 1.0, 50, 20, 20
FIRST_SEED, IMAGES, QUERIES = 10, 150, (500, 2000, 5000)
SURROGATES = ("identity", "blur", "soft")
RECIPE = Recipe(epochs=6, batch_size=64, lr=0.05)
ON_CPU = Hardware(device="cpu", precision="float32", workers=0)
ROWS: dict[str, dict[str, str] | None] = {
    "undefended": None,
    "plain classifier": {"training": "plain"},
    "halftone": {"training": "halftone"},
    "hybrid": {"training": "hybrid"},
    "hybrid, random": {"training": "hybrid", "operator": "random"},
}


@lru_cache(maxsize=1)
def fashion() -> Data:
    """3,000 training images of Fashion-MNIST and 2,000 test images."""
    data = open_data("idx:runs/data/fashion-mnist")
    test = data.test.subset(torch.arange(2000))
    return replace(data, train=data.train.subset(torch.arange(3000)), test=test, validation=None)


def fresh(start: Tapped | None, seed: int) -> Run:
    """A run on these data."""
    data = fashion()
    teachers = () if start is None else (start,)
    return Run(
        data, lambda: Tapped(small_vgg(10, 1), *data.mean_std), teachers, recipe=RECIPE, hardware=ON_CPU, seed=seed
    )


@lru_cache(maxsize=1)
def intensity_network(seed: int) -> Tapped:
    """The network of step 1."""
    return find("plain")(fresh(None, seed)).eval()


@lru_cache(maxsize=8)
def defended(row: str, seed: int) -> Tapped:
    """The network of a row with its halftone."""
    return find("halftone")(fresh(intensity_network(seed), seed), start="teacher", **(ROWS[row] or {})).eval()


def without_halftone(model: Tapped) -> Tapped:
    """A copy without the front."""
    bare = copy.deepcopy(model)
    detach(bare.module, input_layer(bare.module), "front_halftone")
    return bare.rewrapped().eval()


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """The accuracy of one row on clean and attacked images."""
    seed += FIRST_SEED
    undefended = without_halftone(defended("plain classifier", seed))
    model = undefended if ROWS[row] is None else defended(row, seed)
    bare = undefended if ROWS[row] is None else without_halftone(model)
    split = fashion().test.subset(torch.arange(IMAGES))
    images, labels = split.inputs.permute(0, 3, 1, 2) / 255, split.labels  # type: ignore[union-attr]

    def under(attack: Attack, target: Tapped) -> Tensor:
        """Which images the row's network classifies correctly after an attack that was made for a network."""
        with fixed_draws(target, seed):
            attacked = attack(target, images, labels, torch.Generator().manual_seed(seed))
        return correct(model, attacked, labels, seed + 1)

    is_random = "operator" in (ROWS[row] or {})
    pgd = PGD(radius=RADIUS, steps=STEPS, loss="margin")
    adaptive = pgd.replace(steps=RANDOM_STEPS, draws=DRAWS) if is_random else pgd
    l2 = pgd.replace(norm="l2", radius=L2_RADIUS)
    clean = predict(model, fashion().test, device="cpu").argmax(1) == fashion().test.labels
    results = {
        "clean": clean,
        "jitter": correct(model, jittered(images, seed), labels, seed),
        "plain": under(pgd, undefended),
        "grey": under(pgd, bare),
        "white": under(pgd.replace(bpda="none"), model),
        "blind": pgd.replace(bpda="none").blind(model, images, labels),
        "l2_grey": under(l2, bare),
        "l2": under(adaptive.replace(norm="l2", radius=L2_RADIUS, bpda="blur" if ROWS[row] else "none"), model),
    }
    standing = results["plain"] & results["grey"] & results["white"]
    if ROWS[row]:
        bpda = {name: under(adaptive.replace(bpda=name), model) for name in SURROGATES}
        results |= bpda | {"bpda": torch.stack(list(bpda.values())).all(0)}
        standing &= results["bpda"]
    if not is_random:
        counts: list[int] = []
        handle = model.register_forward_hook(lambda module, inputs, outputs: counts.append(len(outputs)))
        results["square"] = under(Square(radius=RADIUS, queries=QUERIES[-1]), model)
        handle.remove()
        # One image to count the classes, all images, then before each query those that still stand; at last all again.
        before = [*counts[2:-1], *[0] * QUERIES[-1]]
        results |= {f"square {n}": torch.arange(IMAGES) < before[n] for n in QUERIES[:-1]}
        standing &= results["square"]
    results["worst"] = standing
    return {name: float(share.float().mean()) for name, share in results.items()}


def jittered(images: Tensor, seed: int) -> Tensor:
    """Images with uniform noise of one level of 255."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + (2 * noise - 1) / 255).clamp(0, 1)


def correct(model: Tapped, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Which images are classified correctly, (N,), with new random numbers for a random network."""
    with torch.no_grad(), fixed_draws(model, seed):
        right: Tensor = model(images).argmax(1) == labels
    return right


EXPERIMENT = Experiment(
    name="halftone",
    head="""
# Halftone defence (`halftone`)

**Question.** Huang, Liao and Huang (2020) classify halftones of images and report top-5 accuracies of 79 to 82 %
under FGSM, I-FGSM and PGD on an ImageNet-type task. The abstract does not say whether the attacker knows of the
halftone. How much of the accuracy remains if he does not, and if he does?

**Protocol.** Fashion-MNIST: 3,000 training images and 2,000 test images of 28x28. A small VGG (three convolutions);
6 epochs on intensity images with batches of 64 and a learning rate of 0.05, then 6 epochs more on the images of the
row. Floyd-Steinberg, two levels, no repeated pixels. Five paired seeds; no training was tuned, for no row. Steps and
loss of the attacks were chosen on another seed.

- *undefended*: 12 epochs on intensities, no halftone; the baseline, and the control that the attacks work.
- *plain classifier*: the same network behind the halftone.
- *halftone*, *hybrid*: the last 6 epochs on halftones, or on both in equal parts (the method's default).
- *hybrid, random*: random thresholds in place of error diffusion; its adaptive attacks average 20 draws (EOT).

**Threat model.** Maximum norm, radius 0.05 for pixels in [0, 1] (L2 columns: radius 1); untargeted; PGD with 50
steps on the margin of the logits, one start (*random*: 20 steps for BPDA); 150 test images, whether classified
correctly or not (*clean*: 2,000). What an attack returns goes through the halftone before it is classified.

- *made for undefended*: the attacker has another network, the row *undefended*. *Grey box*: he has the row's
  classifier and does not know of its halftone. *No surrogate*: he knows of it and follows the true gradient, which
  is 0 (*without gradient*); only the random start remains.
- *BPDA*: he knows of it and replaces its gradient by that of the identity, a blur (Gaussian, 1 pixel), or the
  diffusion with sigmoids in place of steps. *Worst BPDA*: the worst of the three for each image.
- *Square*: random search without a gradient, 5,000 queries on all 150 images; beside it, what was left after the
  first 500 and 2,000 of these queries. Not for *random*, where it would need the mean of several passes per query.
- *Worst of all*: an image counts only if it withstands all attacks of the maximum norm.
- *noise of 1/255*: uniform noise instead of an attack.
""",
    measure=run,
    rows=tuple(ROWS),
    columns={
        "clean": Column("clean"),
        "jitter": Column("noise of 1/255"),
        "plain": Column("made for undefended"),
        "grey": Column("grey box"),
        "white": Column("no surrogate"),
        "identity": Column("BPDA identity"),
        "blur": Column("BPDA blur"),
        "soft": Column("BPDA soft"),
        "bpda": Column("worst BPDA"),
        "square 500": Column("Square, 500 queries"),
        "square 2000": Column("Square, 2,000"),
        "square": Column("Square, 5,000"),
        "worst": Column("worst of all"),
        "l2_grey": Column("L2 grey box"),
        "l2": Column("L2 BPDA blur"),
        "blind": Column("without gradient"),
    },
    baseline="undefended",
    seeds=5,
    tail="""
## What it shows

- **An attacker who does not know of the halftone is nearly harmless**: the classifiers trained on halftones lose 4
  and 6 points of accuracy to the grey box (*random* 9), compared with noise on the same images, and the undefended
  network falls from 82 % to 28 %. It costs 3 to 7 points of clean accuracy. The paper's figures are of this kind.
- **The true gradient is 0 for every image**, so the accuracy under it is no evidence. Surrogate gradients take two
  thirds of the gain and more; the diffusion with sigmoids is the strongest, and the worst of the three for each image
  leaves 44 % (*halftone*) and 40 % (*hybrid*), 16 ± 2 and 12 ± 2 points above PGD on the undefended network.
- **These points are what the surrogates fail to approximate, and no robustness.** Square, which needs no gradient,
  breaks 18 ± 5 and 19 ± 3 points more images than the three surrogates together. In the worst case the halftone has
  no gain: *halftone* -1 ± 4 points compared with the undefended network, where a gain of 5 would have been detected
  (power 80 %), and *hybrid* -6 ± 5. On the undefended network Square and PGD agree (29 and 28 %).
- Square has converged: the last 3,000 of its 5,000 queries lower the accuracy of *halftone* and *hybrid* by 1
  to 2 points, that of the undefended network by 8. 500 queries leave 20 and 24 points less behind the halftone than
  without it: random search is faster there, since every change of a pixel moves many dots.
- Behind the halftone a classifier that was trained on intensities alone loses 27 points of clean accuracy, and Square
  leaves 4 %.
- *Hybrid* training costs as much clean accuracy as *halftone* (-0.4 ± 0.5), and is less robust by 5 ± 3 points in the
  worst case.
- *Random* thresholds leave 51 % under surrogates averaged over 20 draws. This is a number of the kind that Square has
  refuted in the other rows, and so are the L2 columns.

## What it does not show

The paper's data, networks and attacks, which the abstract does not name; larger images, in which a density has more
pixels; adversarial training on halftones (Lo and Patel 2021); a surrogate that is a trained network; a search without
gradients for random thresholds or in L2; attacks with more steps and restarts, which can only lower the numbers.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
