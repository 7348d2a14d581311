"""Nearest class mean, and the means."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from priorshift.models.heads._start import Features, Start
from priorshift.priors import Prior


def class_means(split: Features, num_classes: int) -> Float[Tensor, "classes features"]:
    """The mean of the features of each class, `[C, D]`; every class needs an image.

    Example:
        >>> split = Features(torch.tensor([[0.0, 2.0], [4.0, 4.0], [2.0, 0.0]]), torch.tensor([0, 1, 0]))
        >>> class_means(split, 2)
        tensor([[1., 1.],
                [4., 4.]])
    """
    member = F.one_hot(split.labels.to(split.features.device), num_classes).to(split.features.dtype)
    return member.T @ split.features / member.sum(dim=0)[:, None]


class NearestClassMeanHead(nn.Module):
    r"""NCM: how near the feature lies to the mean feature of each class, all on the unit sphere.

    $$f_y(x) = \cos(\phi(x), m_y) \quad\text{or}\quad -\|\hat\phi(x) - m_y\|^2, \qquad
    m_y = \frac{1}{n_y} \sum_{i: y_i = y} \hat\phi(x_i), \qquad \hat\phi = \phi / \|\phi\|$$

    For a stage of 0 epochs after one that trained the backbone: nothing is trained. At test time use the
    argmax on the uniform mix. The logits are no log-probabilities, so that a shift by a prior does
    something only after calibration.

    Args:
        num_features: Number of features $D$.
        num_classes: Number of classes $C$.
        metric: The first formula, "cosine", or the second, "euclidean".

    Raises:
        ValueError: If there is no such metric.

    Example:
        >>> head = NearestClassMeanHead(2, 2)
        >>> _ = head.means.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> head(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])

    References:
        Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020,
        Section 4; means of normalised features as its released code has them.
    """

    needs_start: ClassVar[bool] = True
    means: Tensor

    def __init__(self, num_features: int, num_classes: int, *, metric: str = "cosine") -> None:
        super().__init__()
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f'Expected `metric` to be "cosine" or "euclidean", but got {metric!r}.')
        self.metric = metric
        self.register_buffer("means", torch.zeros(num_classes, num_features))

    @staticmethod
    def conventional_prior(source: Prior) -> Prior:
        """Its authors use it on the uniform mix."""
        return Prior.uniform(source.num_classes)

    @torch.no_grad()
    def begin(self, start: Start) -> None:
        """Average the normalised features of the training images of each class."""
        normalised = Features(F.normalize(start.train.features, dim=1), start.train.labels)
        self.means.copy_(class_means(normalised, len(self.means)))

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Cosines or negative squared distances of a batch of features."""
        features = F.normalize(features, dim=1)
        if self.metric == "cosine":
            return F.linear(features, F.normalize(self.means, dim=1))
        return -torch.cdist(features, self.means).square()
