"""torch tensors as images: each image of a batch is run, and the results come back as a tensor of the same kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tilefuse.errors import ImageError
from tilefuse.images import Picture, picture_from_array, picture_to_array

_INTEGERS = (torch.uint8, torch.uint16)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def run_tensor(image: Tensor, run: Callable[[Picture], Picture]) -> Tensor:
    """Run a tensor [C, H, W] or [N, C, H, W], uint8, uint16 or float in 0..1, and return the same kind.

    Raises:
        ImageError: another shape or dtype, no image in it, or no data.
    """
    if image.ndim not in (3, 4) or image.dtype not in (*_INTEGERS, *_FLOATS) or image.shape[-3] not in (1, 2, 3, 4):
        hint = ""
        if image.ndim in (3, 4) and image.shape[-1] in (1, 2, 3, 4) and image.shape[-3] not in (1, 2, 3, 4):
            hint = "; channels must come before height and width: torch.movedim(image, -1, -3)"
        raise ImageError(
            f"tensor of shape {list(image.shape)} and {image.dtype}; expected [C, H, W] or [N, C, H, W] with C of 1 to "
            f"4, uint8, uint16 or float in 0..1{hint}"
        )
    if image.numel() == 0:
        raise ImageError(f"tensor of shape {list(image.shape)} holds no image; give at least one pixel")
    batch = plain(image if image.ndim == 4 else image[None])
    results = []
    for single in (batch if image.dtype in _INTEGERS else batch.float()).permute(0, 2, 3, 1).numpy():
        result = run(picture_from_array(single))
        results.append(torch.from_numpy(picture_to_array(result, like=single)).permute(2, 0, 1))
    stacked = torch.stack(results).to(image)
    return stacked if image.ndim == 4 else stacked[0]


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor as NumPy can take it: in main memory, dense, without a gradient or a pending negation.

    Raises:
        ImageError: it has no data (`meta`), or is sparse.
    """
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "no data: its device is meta" if tensor.is_meta else f"the layout {tensor.layout}"
        raise ImageError(f"tensor of shape {list(tensor.shape)} has {kind}; give a dense one with data")
    return tensor.detach().cpu().resolve_neg()
