"""Any picture as the input of a network of one size: gray or colour, on black, resized."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tilefuse.errors import ModelError
from tilefuse.images import Picture

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def fit(picture: Picture, shape: tuple[int, int, int]) -> Tensor:
    """Return a picture as float32 [1, C, H, W] in 0..1 for a network of that `shape`.

    Transparent pictures are shown on black, colour becomes BT.601 luma for one channel, and the size is changed by
    Pillow's bicubic filter, as that of the digits was that the bundled networks are trained on.

    Raises:
        ModelError: the network takes neither one nor three channels.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ModelError(f"the network takes images of {channels} channels; pictures have 1 or 3")
    planes = picture.pixels.astype(np.float32) / picture.full_scale
    if picture.alpha is not None:
        planes *= picture.alpha[..., None].astype(np.float32) / picture.full_scale
    if channels == 1 and not picture.is_gray:
        planes = (planes @ LUMA)[..., None]
    size = (width, height)
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, Image.Resampling.BICUBIC))
        for plane in planes.transpose(2, 0, 1)
    ]
    stack = torch.from_numpy(np.stack(resized)).clamp(0.0, 1.0)
    return stack.expand(channels, -1, -1)[None].contiguous()
