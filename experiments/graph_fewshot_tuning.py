"""Choose the learning rates of ``experiments.graph_fewshot`` from two values, by accuracy on held-out classes."""

from __future__ import annotations

from experiments.graph_fewshot import BACKBONES, trained

RATES = (0.003, 0.01)
SEED = 100  # not reported
HELD_OUT = 0.2  # of the base classes


def main() -> None:
    """Print the 1-shot accuracy of the nearest mean on the held-out classes at the end of training."""
    for name in ("omniglot", "cifar100"):
        for row in BACKBONES:
            for rate in RATES:
                _, run = trained(name, row, SEED, rate, HELD_OUT)
                record = run.fits[-1].history[-1]["learners"]["student"]
                seconds = sum(epoch["seconds"] for fit in run.fits for epoch in fit.history)
                print(
                    f"{name}, {row}, {rate}: {record['validation_accuracy_1_shot']:.3f} ({seconds:.0f} s)", flush=True
                )


if __name__ == "__main__":
    main()
