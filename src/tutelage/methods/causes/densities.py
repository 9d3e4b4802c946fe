"""Classification by a density of each class (density estimation, DE), which can reject inputs."""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from tutelage.data.loader import evaluation_batches
from tutelage.data.split import Split
from tutelage.evaluation.predict import labelled_samples

REJECTED = 0.01  # the share of the training samples below the threshold [inferred]
_RIDGE = 1e-6  # added to the variances of a mixture, as a share of the mean variance of its data


class ClassDensities(nn.Module):
    """Inputs (B, ...) to log p_c(x) + log pi_c, (B, C), with a Gaussian mixture p_c for each class.

        log p_c(x) = log sum_m w_cm N(P (x - x0); mu_cm, S_cm)

    x is flattened, x0 and P are the mean and the first principal components of the training samples. The decision is
    the largest output; their softmax is the posterior, but not the confidence. An input is rejected if the largest
    output is below ``threshold`` (see ``tutelage.attacks.Rejecting``). It computes in float64, and nothing of it is
    trained by gradients.

    Args:
        means: mu, (C, M, k).
        covariances: S, (C, M, k, k), positive definite.
        weights: w, (C, M), rows sum to 1.
        priors: pi, (C,), sum to 1.
        centre: x0, (D,).
        components: P, (k, D).

    Attributes:
        threshold: (), -inf until ``fitted`` sets it.
    """

    means: Tensor
    factors: Tensor
    offsets: Tensor
    log_priors: Tensor
    centre: Tensor
    components: Tensor
    threshold: Tensor

    def __init__(
        self, means: Tensor, covariances: Tensor, weights: Tensor, priors: Tensor, centre: Tensor, components: Tensor
    ) -> None:
        super().__init__()
        cholesky = torch.linalg.cholesky(covariances.double())
        log_determinants = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        size = means.shape[-1]
        offsets = weights.double().log() - 0.5 * (size * math.log(2 * math.pi) + log_determinants)
        identity = torch.eye(size, dtype=torch.float64).expand_as(cholesky)
        buffers = {
            "means": means.double(),
            "factors": torch.linalg.solve_triangular(cholesky, identity, upper=False),
            "offsets": offsets,
            "log_priors": priors.double().log(),
            "centre": centre.double(),
            "components": components.double(),
            "threshold": torch.tensor(-math.inf, dtype=torch.float64),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) to log p_c + log pi_c, (B, C) float64."""
        reduced = (inputs.flatten(1).double() - self.centre) @ self.components.T
        whitened = torch.einsum("cmij,bcmj->bcmi", self.factors, reduced[:, None, None] - self.means)
        return (self.offsets - 0.5 * whitened.square().sum(-1)).logsumexp(-1) + self.log_priors

    @classmethod
    def fitted(cls, split: Split, *, mixture: int = 1, components: int = 50, seed: int = 0) -> ClassDensities:
        """Fit scikit-learn's PCA and, for each class, its Gaussian mixture with full covariances.

        The threshold is the 1 % quantile of max_c (log p_c + log pi_c) over the split, of the outputs themselves, so
        that one number beside them decides [inferred].

        Args:
            split: training samples; those without a label are left out.
            mixture: M, the number of Gaussians of each class.
            components: k, the largest number of principal components.
            seed: of the mixtures.
        """
        split = labelled_samples(split)
        batches = list(evaluation_batches(split, workers=0))
        inputs = torch.cat([batch.inputs.flatten(1) for batch in batches]).double()
        labels = torch.cat([batch.targets for batch in batches]).numpy()
        pca = PCA(min(components, *inputs.shape), random_state=seed).fit(inputs.numpy())
        reduced = pca.transform(inputs.numpy())
        classes, counts = np.unique(labels, return_counts=True)
        ridge = _RIDGE * float(reduced.var(0).mean())
        fits = [
            GaussianMixture(mixture, reg_covar=ridge, random_state=seed).fit(reduced[labels == label])
            for label in classes
        ]
        densities = cls(
            torch.from_numpy(np.stack([fit.means_ for fit in fits])),
            torch.from_numpy(np.stack([fit.covariances_ for fit in fits])),
            torch.from_numpy(np.stack([fit.weights_ for fit in fits])),
            torch.from_numpy(counts / counts.sum()),
            torch.from_numpy(pca.mean_),
            torch.from_numpy(pca.components_),
        )
        with torch.no_grad():
            best = torch.cat([densities(part).amax(1) for part in torch.split(inputs, 512)])
        densities.threshold.fill_(float(best.quantile(REJECTED)))
        return densities
