"""The engine inside other programs: streams, batches, async callers, arrays of other libraries, BGR frames."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
import torch.utils.dlpack
from numpy.typing import NDArray

from tilefuse.errors import ImageError, UsageError
from tilefuse.interruptible import THREAD_NAME

LOOK_AHEAD = 2

Kind = TypeVar("Kind")


class Embedded(ABC):
    """Ways to call an engine from other programs; each gives what the plain call gives."""

    @abstractmethod
    def __call__(self, image: Kind, *, bgr: bool = False) -> Kind:
        """Run an image and return the same kind of thing."""

    def stream(self, images: Iterable[Kind], *, look_ahead: int = LOOK_AHEAD, bgr: bool = False) -> Iterator[Kind]:
        """Run images as they come and yield the results in order.

        One image is computed at a time, in a thread of its own, while the caller uses the last result and `images`
        gives the next input. At most `look_ahead` inputs are taken whose results were not asked for yet, so an endless
        stream, or one of large images, needs bounded memory. An error is raised where its result was due.

        Raises:
            UsageError: `look_ahead` is not positive.
            ImageError: `images` is one image, or nothing that gives images.
        """
        if isinstance(look_ahead, bool) or not isinstance(look_ahead, int) or look_ahead < 1:
            raise UsageError(f"look_ahead: {look_ahead!r} is none; give the number of images to take ahead, 1 or more")
        return _in_order(lambda image: self(image, bgr=bgr), series(images), look_ahead)

    def batch(self, images: Iterable[Kind], *, bgr: bool = False) -> list[Kind]:
        """Run several images, of one size or of many, and return their results in order; otherwise as `stream`."""
        return list(self.stream(images, bgr=bgr))

    async def acall(self, image: Kind, *, bgr: bool = False) -> Kind:
        """Run an image in a thread, so that the event loop goes on: `result = await engine.acall(image)`.

        Calls awaited together run in the loop's default executor. Cancelling stops the waiting, not the computing.
        """
        return await asyncio.to_thread(self, image, bgr=bgr)


def series(images: Iterable[Kind]) -> Iterator[Kind]:
    """Iterate over images, where that gives images: the rows of one image would be taken for gray ones.

    Raises:
        ImageError: it is one image, or can't be iterated over.
    """
    kind = type(images).__name__
    single = isinstance(images, str | bytes)
    if isinstance(images, np.ndarray | torch.Tensor):
        kind += f" of {'x'.join(map(str, images.shape))}"
        # Channels come last in arrays and first in tensors.
        depth = images.shape[-1 if isinstance(images, np.ndarray) else 0] if images.ndim == 3 else 0
        single = images.ndim < 3 or 1 <= depth <= 4
    if not single:
        with contextlib.suppress(TypeError):
            return iter(images)
    raise ImageError(f"images: {kind} is no series of images; give a list, a generator or a batch [N, ...] of them")


def array_of(image: object) -> NDArray[Any]:
    """Take an image of another library as a numpy array, without a copy where it lies in main memory.

    It has to speak `__array_interface__` or DLPack (`__dlpack__`: JAX, CuPy, TensorFlow, ...), as [H, W] or [H, W, C].

    Raises:
        ImageError: it speaks neither, or its data can't be had as an array.
    """
    try:
        if hasattr(image, "__array_interface__"):
            return np.asarray(image)
        if hasattr(image, "__dlpack__"):
            # Not numpy.from_dlpack, which can't fetch from a GPU.
            return torch.utils.dlpack.from_dlpack(image).detach().cpu().numpy()
    # What a foreign object raises while it is asked for its data is its own affair.
    except Exception as error:
        raise ImageError(f"{type(image).__name__} did not give its data: {error}; give a numpy array") from error
    raise ImageError(
        f"{type(image).__name__} is no image; give a numpy array, a PIL image, a torch tensor, or an array that speaks "
        "__array_interface__ or __dlpack__"
    )


def swap_channels(image: Kind) -> Kind:
    """Turn a numpy array [H, W, 3 or 4] from BGR to RGB or back, without a copy; [H, W] and one channel stay.

    Raises:
        ImageError: the image is no array; those of other kinds say themselves what their channels are.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(f"bgr=True is for numpy arrays as OpenCV gives them; {type(image).__name__} was given")
    if image.ndim != 3 or image.shape[2] < 3:
        return image
    colour = image[..., 2::-1]
    return cast(Kind, colour if image.shape[2] == 3 else np.concatenate([colour, image[..., 3:]], axis=2))


def _in_order(call: Callable[[Kind], Kind], inputs: Iterator[Kind], look_ahead: int) -> Iterator[Kind]:
    pending: deque[Future[Kind]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME) as pool:
        try:
            more = True
            while more or pending:
                more = more and _take(inputs, lambda image: pool.submit(call, image), pending)
                if pending and (not more or len(pending) >= look_ahead):
                    yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _take(inputs: Iterator[Kind], submit: Callable[[Kind], Future[Kind]], pending: deque[Future[Kind]]) -> bool:
    """Take one input; tell whether there may be more. What the iterator raises is due after the results before it."""
    try:
        pending.append(submit(next(inputs)))
    except StopIteration:
        return False
    # Put off, not swallowed: it is raised when its turn comes.
    except Exception as error:  # noqa: BLE001
        failed: Future[Kind] = Future()
        failed.set_exception(error)
        pending.append(failed)
        return False
    return True
