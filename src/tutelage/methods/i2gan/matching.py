"""Feature matching, the loss of the generator: Salimans et al. 2016, arXiv 1606.03498."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term, View
from tutelage.training.updates import frozen_running_statistics


@full_precision
def mean_distance(generated: Tensor, real: Tensor) -> Tensor:
    """The distance of the mean features of generated and real images, (1/D) sum_d |mean_i g_id - mean_j r_jd|.

    Args:
        generated, real: (N, D) and (M, D). No gradient reaches ``real``.

    Returns:
        (), in units of the features.
    """
    return (generated.mean(0) - real.detach().mean(0)).abs().mean()


class Repeated(View):
    """The samples of a part of the batch, each several times. A generator makes as many images of it.

    Args:
        part: the part; ``None`` for the whole batch.
        times: how often each sample is in the batch.
    """

    def __init__(self, part: View | None, times: int) -> None:
        self.part, self.times = part, times

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The repeated samples, the copies of a sample next to each other."""
        if self.part is not None:
            batch = self.part(batch, student, teacher)

        def repeated(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(self.times, 0)

        return Batch(repeated(batch.inputs), repeated(batch.targets), repeated(batch.index), None)


class FeatureMatching(Term):
    """``mean_distance`` of the discriminator's embeddings of generated images and of the batch's images, ().

    Args:
        discriminator: the model of another learner, with the role ``embedding``. It runs in the mode it is in, and
            neither its weights nor its running statistics change. It is not a submodule of this term.
        times: how often each real image is in the batch (see ``Repeated``); the discriminator runs on one of them.
    """

    reads_labels = False
    roles = ("image",)
    teacher_roles = ()

    def __init__(self, discriminator: Tapped, times: int = 1) -> None:
        super().__init__()
        check_tapped("FeatureMatching", discriminator)
        self._discriminator = (discriminator,)  # in a tuple, so that torch does not register it as a submodule
        self.times = times

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), in units of the features."""
        (discriminator,) = self._discriminator
        real_images = self.required(batch, "a batch").inputs[:: self.times]
        with frozen_running_statistics(discriminator):
            with torch.no_grad():
                real = discriminator.tap(real_images, ("embedding",))["embedding"]
            generated = discriminator.tap(student["image"], ("embedding",))["embedding"]
        return mean_distance(generated, real)
