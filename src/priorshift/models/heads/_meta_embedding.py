"""OLTR's classifier: features joined with a memory of class means, then normalised."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from priorshift.models.heads._class_means import class_means
from priorshift.models.heads._linear import linear_before
from priorshift.models.heads._start import Start
from priorshift.priors import Prior

_NEAREST = 1e-6
_EXACT = "donot_use_mm_for_euclid_dist"


class MetaEmbeddingHead(nn.Module):
    r"""OLTR: a cosine-norm classifier on dynamic meta-embeddings, features that recall a visual memory.

    With the direct feature $v$, the memory $M$ of one centroid per class, the attention $o$ over it and the
    concept selector $e$,

    $$v_{meta} = \frac{s}{\min_c \|v - M_c\|} \left( v + e \odot o^\top M \right), \qquad
    o = \mathrm{softmax}(T_{hal}(v)), \quad e = \tanh(T_{sel}(v)),$$
    $$f_y(x) = \kappa\, \frac{w_y^\top}{\|w_y\|} \frac{v_{meta}}{1 + \|v_{meta}\|}.$$

    The first factor is the reachability: features far from all centroids come out short. For a second stage,
    after one of cross-entropy with a linear head, that trains everything with class-balanced sampling:
    `begin` puts the class means of the training features into the memory and the linear head into $T_{hal}$;
    from there `regulariser` moves the memory. At test time use the logits as they are on the
    uniform mix; no theory says what they carry.

    The paper's modulated attention works on feature maps before pooling and belongs to the backbone:
    `SmallCNN(attention=True)`.

    Args:
        num_features: Number of features $D$.
        num_classes: Number of classes $C$.
        scale: Factor $\kappa > 0$ of the logits.
        reach: Factor $s > 0$ of the reachability; 1 in the paper, 10 in its released code.
        strength: Weight of the regulariser, at least 0.
        margin: Mean squared distance to foreign centroids up to which features are pushed away from them.

    Raises:
        ValueError: If an option is out of its range.

    Example:
        >>> head = MetaEmbeddingHead(2, 2)
        >>> zeros = {name: torch.zeros_like(tensor) for name, tensor in head.state_dict().items()}
        >>> given = {"weight": torch.eye(2), "memory": torch.tensor([[3.0, 3.0], [9.0, 9.0]])}
        >>> _ = head.load_state_dict(zeros | given)
        >>> head(torch.tensor([[3.0, 4.0]])).tolist()
        [[9.411765098571777, 12.549019813537598]]

    References:
        Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019, Section 3, and its
        released code for the constants, the regulariser and its way of updating the memory.
    """

    needs_start: ClassVar[bool] = True

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        scale: float = 16.0,
        reach: float = 10.0,
        strength: float = 0.01,
        margin: float = 10.0,
    ) -> None:
        super().__init__()
        for name, value, rule, holds in (
            ("scale", scale, "positive", scale > 0),
            ("reach", reach, "positive", reach > 0),
            ("strength", strength, "non-negative", strength >= 0),
            ("margin", margin, "non-negative", margin >= 0),
        ):
            if not holds:
                raise ValueError(f"Expected `{name}` to be {rule}, but got {value}.")
        self.scale, self.reach, self.strength, self.margin = scale, reach, strength, margin
        self.hallucinator = nn.Linear(num_features, num_classes)
        self.selector = nn.Linear(num_features, num_features)
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.memory = nn.Parameter(torch.zeros(num_classes, num_features))

    @staticmethod
    def conventional_prior(source: Prior) -> Prior:
        """Its regulariser has another optimum than the loss; its authors use it on the uniform mix."""
        return Prior.uniform(source.num_classes)

    @torch.no_grad()
    def begin(self, start: Start) -> None:
        """Fill the memory with class means, and start the attention over it from the linear head before.

        Raises:
            ValueError: If that is not a linear head.
        """
        previous = linear_before(start.previous)
        self.hallucinator.weight.copy_(previous.weight)
        self.hallucinator.bias.copy_(previous.bias)
        self.memory.copy_(class_means(start.train, len(self.memory)))

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of features; the memory gets no gradient from them."""
        meta = self.embed(features)
        meta = meta / (1 + meta.norm(dim=1, keepdim=True))
        return self.scale * F.linear(meta, F.normalize(self.weight, dim=1))

    def embed(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        """The meta-embeddings of a batch of features."""
        memory = self.memory.detach()
        attention = self.hallucinator(features).softmax(dim=1)
        recalled = self.selector(features).tanh() * (attention @ memory)
        distances = torch.cdist(features, memory, compute_mode=_EXACT)
        # An image that is a class of its own lies on its centroid.
        nearest = distances.amin(dim=1, keepdim=True).clamp(min=_NEAREST)
        meta: Tensor = self.reach / nearest * (features + recalled)
        return meta

    def regulariser(
        self,
        features: Float[Tensor, "batch features"],
        labels: Int[Tensor, " batch"],
        *,
        process_group: "torch.distributed.ProcessGroup | None" = None,
    ) -> Float[Tensor, ""]:
        r"""Discriminative centroids: features near the centroid of their class and far from the others.

        $$\text{strength} \cdot \left[ \frac{1}{2N} \sum_i \|v_i - M_{y_i}\|^2 + 0.01 \max\!\Big(0,
        \text{margin} - \frac{1}{NC} \sum_i \sum_{c \ne y_i} \|v_i - M_c\|^2 \Big) \right]$$

        What the first sum moves in the memory is averaged within each class, as in centre loss: its gradient
        with respect to $M_c$ is $\sum_{i: y_i = c} (M_c - v_i) / (1 + n_c) / N$, with $n_c$ images of the
        class in the batch.

        Negative labels, as of images that only stand in for a missing share of a batch, do not count.

        With a process group the batch is that of all its ranks: the mean over them of what they return, and
        of its gradients, is that of one process.
        """
        counted = labels >= 0
        labels = labels.clamp(min=0)
        own = self.memory[labels]
        member = F.one_hot(labels, len(self.memory)) * counted.unsqueeze(1)
        distances = torch.cdist(features, self.memory, compute_mode=_EXACT).square()
        foreign = ((counted.unsqueeze(1).long() - member) * distances).sum()
        per_class, all_foreign, ranks = member.sum(dim=0), foreign.detach(), 1
        if process_group is not None:
            sums = torch.cat([per_class, all_foreign[None]])
            torch.distributed.all_reduce(sums, group=process_group)
            per_class, all_foreign, ranks = sums[:-1].long(), sums[-1], process_group.size()
        images = per_class.sum().clamp(min=1)
        pairs = images * len(self.memory)
        share = counted / (1 + per_class[labels])
        pull = counted * (features - own.detach()).square().sum(dim=1)
        update = share * (features.detach() - own).square().sum(dim=1)
        attraction = (pull + update - update.detach()).sum() * ranks / images / 2
        near = self.margin >= all_foreign / pairs
        repulsion = torch.where(near, self.margin - foreign * ranks / pairs, 0)
        return self.strength * (attraction + 0.01 * repulsion)
