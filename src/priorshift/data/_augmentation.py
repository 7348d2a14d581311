"""Augmentation of a whole batch of images that already live on the device."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Num
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moves:
    """How each image of a batch is moved: a shift of up to `shift` pixels, seen in a mirror or not.

    Args:
        mirrored: Whether it is mirrored left to right, `[B]`.
        top: Row of the padded image that comes first, `[B]`, between 0 and twice the shift.
        left: Column that comes first, `[B]`, of the mirrored image.
        shift: Pixels of black around an image.
    """

    mirrored: Bool[Tensor, " batch"]
    top: Int[Tensor, " batch"]
    left: Int[Tensor, " batch"]
    shift: int

    @classmethod
    def draw(cls, batch: int, *, shift: int, flip: bool, seed: int) -> "Moves":
        """Moves for a batch of this size, drawn on the CPU and so the same for every device."""
        generator = torch.Generator().manual_seed(seed)
        mirrored = torch.zeros(batch, dtype=torch.bool)
        if flip:
            mirrored = torch.rand(batch, generator=generator) < 0.5
        top = left = torch.full((batch,), shift)
        if shift:
            top, left = torch.randint(0, 2 * shift + 1, (2, batch), generator=generator)
        return cls(mirrored, top, left, shift)

    def of(self, images: Num[Tensor, "batch channels height width"]) -> Tensor:
        """The images as they are after the moves: one gather on their device."""
        batch, channels, height, width = images.shape
        mirrored, top, left = (each.to(images.device) for each in (self.mirrored, self.top, self.left))
        padded = F.pad(images, (self.shift,) * 4)
        whole = padded.shape[3]
        rows = top.view(-1, 1) + torch.arange(height, device=images.device)
        columns = left.view(-1, 1) + torch.arange(width, device=images.device)
        columns = torch.where(mirrored.view(-1, 1), whole - 1 - columns, columns)
        places = rows.view(batch, 1, height, 1) * whole + columns.view(batch, 1, 1, width)
        places = places.expand(-1, channels, -1, -1).flatten(2)
        return padded.flatten(2).gather(2, places).view(images.shape)


def augmented(
    images: Num[Tensor, "batch channels height width"], *, shift: int, flip: bool, seed: int
) -> Num[Tensor, "batch channels height width"]:
    """Shift each image by up to `shift` pixels both ways, zeros coming in, and mirror it with probability ½.

    Args:
        images: The batch, on any device, of any dtype.
        shift: Largest shift in pixels; 0 for none.
        flip: Whether to mirror images left to right, each with probability ½.
        seed: The result is a pure function of the batch and the seed, the same on every device.

    Example:
        >>> augmented(torch.ones(1, 1, 2, 2), shift=1, flip=False, seed=1)[0, 0]
        tensor([[1., 0.],
                [1., 0.]])
    """
    return Moves.draw(len(images), shift=shift, flip=flip, seed=seed).of(images)
