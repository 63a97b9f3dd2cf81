"""A picture as work for a network: its colour and its alpha as stacks of images, and the result put together again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from tilefuse.errors import ImageError, UsageError
from tilefuse.images import Picture, bleed, keep_flat, varies
from tilefuse.masks import Mask
from tilefuse.memory import FULL_SCALE, Pixels

# Colour and mask in, colour out: a network that fills holes.
MASKED_CHANNELS = (4, 3)


@dataclass(frozen=True, eq=False)
class Job:
    """Images of one size for one network: `source` [N, H, W, C], and `result` [N, H', W', C'] to be filled."""

    source: Pixels
    result: Pixels


def picture_jobs(
    picture: Picture, channels: tuple[int, int], output: tuple[int, int], mask: Mask | None = None
) -> list[Job]:
    """Split a picture into jobs for a network of `channels` (in, out) whose result is `output` (height, width).

    A gray picture goes through a colour network as three equal channels and comes back gray. Through a network of one
    channel, each colour channel goes by itself. Alpha goes as a gray image of its own; colour that full transparency
    hides is first replaced by its visible neighbours', or it would fringe the edges. Constant alpha stays behind.
    A network of `MASKED_CHANNELS` gets the holes of `mask` (bool [H, W]) as black, and the mask as its fourth channel;
    without a mask there are no holes.

    Raises:
        ImageError: the network takes or gives neither one nor three channels, or colours gray pictures and is given a
            colour one; or the mask has another size than the picture.
        UsageError: there is a mask, and the network takes none.
    """
    mask = holes_of(picture, channels, mask)
    pixels = picture.pixels if picture.alpha is None else bleed(picture.pixels, picture.alpha)
    alpha = picture.alpha if picture.alpha is not None and varies(picture.alpha) else None
    depth = pixels.shape[2]
    stack = pixels.transpose(2, 0, 1)[..., None] if channels[0] == 1 else pixels[None]
    out_depth = 1 if depth == 1 and (mask is not None or channels[0] == channels[1]) else channels[1]
    jobs = [Job(_masked(stack, mask), np.empty((stack.shape[0], *output, out_depth), pixels.dtype))]
    if alpha is not None:
        jobs.append(Job(_masked(alpha[None, ..., None], mask), np.empty((1, *output, 1), pixels.dtype)))
    return jobs


def holes_of(picture: Picture, channels: tuple[int, int], mask: Mask | None) -> Mask | None:
    """Return the holes that a network which takes a mask is to fill, none without a mask; None for other networks.

    Raises:
        ImageError: the mask has another size than the picture, or no picture has such channels.
        UsageError: there is a mask, and the network takes none.
    """
    if channels == MASKED_CHANNELS:
        whole = np.zeros((picture.height, picture.width), np.bool_) if mask is None else mask
        if whole.shape != (picture.height, picture.width):
            raise ImageError(
                f"the mask is {whole.shape[1]} x {whole.shape[0]} pixels and the image {picture.width} x "
                f"{picture.height}; give a mask of the image's size"
            )
        return whole
    if mask is not None:
        raise UsageError("the network takes no mask; leave it out, or use a network that fills holes")
    if not {*channels} <= {1, 3}:
        taken, given = channels
        raise ImageError(f"the network takes images of {taken} channels and gives {given}; pictures have 1 or 3")
    if channels == (1, 3) and not picture.is_gray:
        raise ImageError("the network makes colour out of gray; convert the picture to gray first")
    return None


def _masked(pixels: Pixels, mask: Mask | None) -> Pixels:
    """Give [1, H, W, C] as three channels, black in holes, and the mask; as it is where there is no mask."""
    if mask is None:
        return pixels
    joined = np.empty((*pixels.shape[:3], MASKED_CHANNELS[0]), pixels.dtype)
    joined[..., :3] = pixels
    joined[:, mask, :3] = 0
    joined[..., 3] = mask * np.asarray(FULL_SCALE[pixels.dtype], pixels.dtype)
    return joined


def assemble(picture: Picture, jobs: list[Job], scale: Fraction, mask: Mask | None = None) -> Picture:
    """Put the results together as a picture with the metadata of the original; its resolution grows with the scale.

    Outside the holes of `mask` the pixels are the original's, to the last bit.
    """
    colour = jobs[0].result
    pixels = colour[0] if colour.shape[0] == 1 else np.ascontiguousarray(colour[..., 0].transpose(1, 2, 0))
    alpha = None
    if picture.alpha is not None:
        alpha = jobs[1].result[0, ..., 0] if len(jobs) > 1 else np.full(pixels.shape[:2], picture.alpha[0, 0])
        keep_flat(alpha, picture.alpha)
        if alpha.dtype == np.float32:
            np.clip(alpha, 0, 1, out=alpha)
    if mask is not None:
        pixels[~mask] = picture.pixels[~mask]
        if alpha is not None and picture.alpha is not None:
            alpha[~mask] = picture.alpha[~mask]
    # A profile describes its own number of channels.
    icc = picture.icc if pixels.shape[2] == picture.pixels.shape[2] else None
    dpi = picture.dpi and (picture.dpi[0] * float(scale), picture.dpi[1] * float(scale))
    return replace(picture, pixels=pixels, alpha=alpha, dpi=dpi, icc=icc)
