"""torch tensors as images: each image of a batch is run, and the results come back as a tensor of the same kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tilefuse.errors import ImageError
from tilefuse.images import Picture, picture_from_array, picture_to_array


def run_tensor(image: Tensor, run: Callable[[Picture], Picture]) -> Tensor:
    """Run a tensor [C, H, W] or [N, C, H, W], uint8 or float in 0..1, and return the same kind.

    Raises:
        ImageError: another shape or dtype, or no image in it.
    """
    if image.ndim not in (3, 4) or image.dtype not in (torch.uint8, torch.float16, torch.bfloat16, torch.float32):
        raise ImageError(
            f"tensor of shape {list(image.shape)} and {image.dtype}; expected [C, H, W] or [N, C, H, W], "
            "uint8 or float in 0..1"
        )
    batch = image if image.ndim == 4 else image[None]
    plain = batch.detach().cpu().to(torch.uint8 if image.dtype == torch.uint8 else torch.float32)
    results = []
    for single in plain.permute(0, 2, 3, 1).numpy():
        result = run(picture_from_array(single))
        results.append(torch.from_numpy(picture_to_array(result, like=single)).permute(2, 0, 1))
    if not results:
        raise ImageError(f"tensor of shape {list(image.shape)} holds no image")
    stacked = torch.stack(results).to(image)
    return stacked if image.ndim == 4 else stacked[0]
