"""A picture as work for a network: its colour and its alpha as stacks of images, and the result put together again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from tilefuse.errors import ImageError
from tilefuse.images import Picture, bleed, keep_flat, varies
from tilefuse.memory import Pixels


@dataclass(frozen=True, eq=False)
class Job:
    """Images of one size for one network: `source` [N, H, W, C], and `result` [N, H', W', C'] to be filled."""

    source: Pixels
    result: Pixels


def picture_jobs(picture: Picture, channels: tuple[int, int], output: tuple[int, int]) -> list[Job]:
    """Split a picture into jobs for a network of `channels` (in, out) whose result is `output` (height, width).

    A gray picture goes through a colour network as three equal channels and comes back gray. Through a network of one
    channel, each colour channel goes by itself. Alpha goes as a gray image of its own; colour that full transparency
    hides is first replaced by its visible neighbours', or it would fringe the edges. Constant alpha stays behind.

    Raises:
        ImageError: the network takes or gives neither one nor three channels, or colours gray pictures and is given a
            colour one.
    """
    if not {*channels} <= {1, 3}:
        taken, given = channels
        raise ImageError(f"the network takes images of {taken} channels and gives {given}; pictures have 1 or 3")
    if channels == (1, 3) and not picture.is_gray:
        raise ImageError("the network makes colour out of gray; convert the picture to gray first")
    pixels = picture.pixels if picture.alpha is None else bleed(picture.pixels, picture.alpha)
    depth = pixels.shape[2]
    stack = pixels.transpose(2, 0, 1)[..., None] if channels[0] == 1 else pixels[None]
    out_depth = 1 if depth == 1 and channels[0] == channels[1] else channels[1]
    jobs = [Job(stack, np.empty((stack.shape[0], *output, out_depth), pixels.dtype))]
    if picture.alpha is not None and varies(picture.alpha):
        jobs.append(Job(picture.alpha[None, ..., None], np.empty((1, *output, 1), pixels.dtype)))
    return jobs


def assemble(picture: Picture, jobs: list[Job], scale: Fraction) -> Picture:
    """Put the results together as a picture with the metadata of the original; its resolution grows with the scale."""
    colour = jobs[0].result
    pixels = colour[0] if colour.shape[0] == 1 else np.ascontiguousarray(colour[..., 0].transpose(1, 2, 0))
    alpha = None
    if picture.alpha is not None:
        alpha = jobs[1].result[0, ..., 0] if len(jobs) > 1 else np.full(pixels.shape[:2], picture.alpha[0, 0])
        keep_flat(alpha, picture.alpha)
        if alpha.dtype == np.float32:
            np.clip(alpha, 0, 1, out=alpha)
    # A profile describes its own number of channels.
    icc = picture.icc if pixels.shape[2] == picture.pixels.shape[2] else None
    dpi = picture.dpi and (picture.dpi[0] * float(scale), picture.dpi[1] * float(scale))
    return replace(picture, pixels=pixels, alpha=alpha, dpi=dpi, icc=icc)
