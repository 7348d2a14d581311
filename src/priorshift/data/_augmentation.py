"""Augmentation of a whole batch of images that already live on the device."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def augmented(
    images: Float[Tensor, "batch channels height width"], *, shift: int, flip: bool, seed: int
) -> Float[Tensor, "batch channels height width"]:
    """Shift each image by up to `shift` pixels both ways, zeros coming in, and mirror it with probability ½.

    Args:
        images: The batch, on any device.
        shift: Largest shift in pixels; 0 for none.
        flip: Whether to mirror images left to right, each with probability ½.
        seed: The result is a pure function of the batch and the seed, the same on every device.

    Example:
        >>> augmented(torch.ones(1, 1, 2, 2), shift=1, flip=False, seed=1)[0, 0]
        tensor([[1., 0.],
                [1., 0.]])
    """
    generator = torch.Generator().manual_seed(seed)
    batch, _, height, width = images.shape
    if flip:
        mirrored = (torch.rand(batch, generator=generator) < 0.5).to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if shift:
        top, left = torch.randint(0, 2 * shift + 1, (2, batch), generator=generator).to(images.device)
        padded = F.pad(images, (shift,) * 4)
        rows = top.view(-1, 1, 1) + torch.arange(height, device=images.device).view(1, -1, 1)
        columns = left.view(-1, 1, 1) + torch.arange(width, device=images.device).view(1, 1, -1)
        sample = torch.arange(batch, device=images.device).view(-1, 1, 1)
        images = padded.movedim(1, -1)[sample, rows, columns].movedim(-1, 1)
    return images
