"""The public face: `load` a model, then call the engine with images, arrays, tensors or files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tilefuse.backends.base import Precision, Session
from tilefuse.backends.pixels import PixelSession
from tilefuse.classification import Classification, classify
from tilefuse.compiling import Budget, SessionKey, check_held, session_cache
from tilefuse.embedding import Embedded, Kind, array_of, swap_channels
from tilefuse.errors import BackendError
from tilefuse.execute import Execution, Progress
from tilefuse.file_jobs import Report, run_job
from tilefuse.footprint import Footprint
from tilefuse.generation import generate, interpolate, latent_inputs
from tilefuse.held_encoding import Encode, run_and_encode
from tilefuse.images import (
    Picture,
    picture_from_array,
    picture_from_pil,
    picture_to_array,
    picture_to_pil,
    read_image,
)
from tilefuse.jobs import MASKED_CHANNELS, Job, assemble, holes_of, picture_jobs
from tilefuse.latent_measurement import LATENTS
from tilefuse.masks import Mask, MaskLike, mask_of
from tilefuse.measurement import Measurement, Subject
from tilefuse.model import Model
from tilefuse.options import MEASURE_SECONDS, Options
from tilefuse.picture_windows import run_jobs, runner_of
from tilefuse.planner import Plan, Request, Serving
from tilefuse.reconstruction import reconstruct
from tilefuse.row_planner import plan_picture
from tilefuse.selection import Choices
from tilefuse.serving import choose
from tilefuse.sessions import SessionCache
from tilefuse.source import load_model
from tilefuse.streamed_job import StreamJob, checked_compression
from tilefuse.tensor_images import run_tensor
from tilefuse.tiling import Grid

__all__ = ["Engine", "Report", "SessionKey", "load"]


@dataclass(frozen=True, eq=False)
class Engine(Embedded):
    """A loaded model with a chosen backend. Immutable, and safe to call from many threads at once.

    Pickling sends the model and the options, for workers that multiprocessing spawns: who serves is chosen there.
    """

    model: Model
    options: Options
    candidates: tuple[Serving, ...]
    choices: Choices
    budget: Budget
    _sessions: SessionCache[SessionKey]

    @property
    def serving(self) -> Serving:
        """The backend predicted to be the fastest: what serves until a choice is measured."""
        return self.candidates[0]

    @property
    def footprint(self) -> Footprint:
        """Scale, halo, alignment and ops with global reach.

        Raises:
            ModelError: the network is no image-to-image network.
        """
        return self.model.geometry()

    @property
    def scale(self) -> Fraction:
        """Output pixels per input pixel along an edge."""
        return self.footprint.scale

    def __reduce__(self) -> tuple[Callable[[Model, Options], Engine], tuple[Model, Options]]:
        return _engine, (self.model, self.options)

    def __deepcopy__(self, _copied: dict[int, object]) -> Engine:
        return self

    def plan(self, height: int, width: int, *, channels: int = 3, dtype: str = "uint8") -> Plan:
        """Plan an image of height x width pixels; nothing runs.

        Raises:
            CapacityError: it does not fit the memory budget.
        """
        serving = self.choices.look(self._subject(height, width, channels, dtype)).servings[0]
        return self._plan(height, width, channels, np.dtype(dtype), serving)[0]

    def measured(self, height: int, width: int, *, channels: int = 3, dtype: str = "uint8") -> tuple[Measurement, ...]:
        """Return what was measured of who could serve such images, the chosen one first; nothing before."""
        verdict = self.choices.look(self._subject(height, width, channels, dtype)).verdict
        return verdict.measurements if verdict else ()

    def warm(
        self, height: int, width: int, *, channels: int = 3, dtype: str = "uint8", seconds: float | None = None
    ) -> Plan:
        """Measure who serves images of about height x width pixels best, record it, and return the plan.

        Takes `seconds`, by default `measure_seconds` of `load`. From now on this engine, and engines that are loaded
        later, serve such images so.

        Raises:
            ModelError: the network is no image-to-image network.
            CapacityError: it does not fit the memory budget.
        """
        serving = self.choices.warm(self._subject(height, width, channels, dtype), seconds).servings[0]
        return self._plan(height, width, channels, np.dtype(dtype), serving)[0]

    def warm_latents(self, *, seconds: float | None = None) -> Serving:
        """Measure who draws images from latents best, record it, and return it; otherwise as `warm`.

        Raises:
            ModelError: the network takes no latent.
        """
        latent_inputs(self.model, 1, seed=0, label=None)
        return self.choices.warm(LATENTS, seconds).servings[0]

    def __call__(self, image: Kind, *, mask: MaskLike | None = None, bgr: bool = False) -> Kind:
        """Run an image and return the same kind of thing.

        Takes numpy [H, W] or [H, W, C] (uint8, uint16, or float in 0..1), a PIL image, or a torch tensor [C, H, W] or
        [N, C, H, W] of the same. RGB, straight alpha. Float results are the network's own, unclipped.
        Other arrays are taken through `__array_interface__` or DLPack and come back as numpy arrays. `bgr` is for
        numpy arrays in OpenCV's order of channels, which they come back in.
        `mask`, for networks that fill holes, is a gray image (see `tilefuse.masks`) or bool [H, W]: white, or true, is
        a hole; known pixels come back as they were.

        Raises:
            ImageError: another type, shape or dtype, or a mask of another size.
            UsageError: there is a mask, and the network takes none.
            CapacityError: it does not fit the memory budget.
        """
        if bgr:
            return swap_channels(self(swap_channels(image), mask=mask))
        holes = None if mask is None else mask_of(mask)
        if isinstance(image, Image.Image):
            return cast(Kind, picture_to_pil(self.run_picture(picture_from_pil(image), mask=holes)[0]))
        if isinstance(image, np.ndarray):
            picture = self.run_picture(picture_from_array(image), mask=holes)[0]
            return cast(Kind, picture_to_array(picture, like=image))
        if isinstance(image, Tensor):
            return cast(Kind, run_tensor(image, lambda picture: self.run_picture(picture, mask=holes)[0]))
        return cast(Kind, self(array_of(image), mask=mask))

    def run_file(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        read: Callable[[str | os.PathLike[str]], Picture] = read_image,
        resume: bool = False,
        per_band: bool = False,
        value_range: tuple[float, float] | None = None,
        compression: str = "deflate",
        pyramid: bool = False,
        mask: MaskLike | None = None,
        on_encode: Progress | None = None,
    ) -> Report:
        """Run an image file into another; the output appears under its name only when it is complete.

        `on_plan` is called before the work, `progress(done, total)` after each window; `read` decodes the input.
        `on_encode(rows, total)` is called, from another thread, as rows of a streamed job's result are encoded.
        An image whose decoded form does not fit the budget is streamed, and so are rasters (.npy, .zarr, Deep Zoom):
        its finished windows are journaled beside the output, and `resume` goes on where such a run was stopped.
        `per_band` runs each band as a gray image; `value_range` are the samples that the network sees as 0 and 1;
        `compression` of a streamed TIFF is deflate, zstd or none; `pyramid` adds reduced copies to it, as viewers of
        large images want. Each but `compression` streams the job.
        `mask`, a file or as in a call, is for networks that fill holes, and for images held in memory.

        Raises:
            ImageError: the input or the mask can't be read, or the mask is no gray image of its size.
            UsageError: the output exists (and not `overwrite`), can't be written, or its format can't hold the result.
            CapacityError: the job does not fit the memory budget, or the disk.
        """
        job = StreamJob(
            Path(source),
            Path(output),
            overwrite,
            resume,
            per_band,
            value_range,
            checked_compression(compression),
            pyramid,
        )
        return run_job(self, job, read, progress, on_plan, None if mask is None else mask_of(mask), on_encode)

    def generate(self, count: int, *, seed: int = 0, label: int | None = None) -> NDArray[np.uint8]:
        """Draw `count` images from random latents, uint8 [count, H, W, C], the same for the same seed.

        `label` picks the class of a conditional model; without it the classes take turns.

        Raises:
            ModelError: the network takes no latent.
            UsageError: the count is not positive, or there is no such label.
        """
        return generate(self.model, self._drawing_session, count, seed=seed, label=label)

    def interpolate(self, first: int, last: int, count: int, *, label: int | None = None) -> NDArray[np.uint8]:
        """Draw `count` images on the way from seed `first` to seed `last`, uint8 [count, H, W, C]; as `generate`."""
        return interpolate(self.model, self._drawing_session, (first, last), count, label=label)

    def classify(self, pictures: Sequence[Picture]) -> list[Classification]:
        """Tell the class of each picture and how sure the network is; see `tilefuse.classification`.

        Raises:
            ModelError: the network is no classifier.
        """
        return classify(self.model, self._fixed_session, pictures)

    def reconstruct(self, pictures: Sequence[Picture]) -> NDArray[np.uint8]:
        """Encode pictures and draw them again, uint8 [count, H, W, C]; see `tilefuse.reconstruction`.

        Raises:
            ModelError: the model has no encoder.
        """
        return reconstruct(self.model, self.options, self._fixed_session, pictures)

    def _drawing_session(self, images: int) -> Session:
        return self.session(self.choices.settle(LATENTS).servings[0], images, (0, 0))

    def _fixed_session(self, images: int) -> Session:
        """Compile a network whose inputs have no free size."""
        return self.session(self.serving, images, (0, 0))

    def run_picture(
        self,
        picture: Picture,
        *,
        progress: Progress | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        mask: Mask | None = None,
    ) -> tuple[Picture, Plan, Execution]:
        """Run a picture: colour, then alpha; `mask` is true in holes."""
        holes, jobs, settled = self._settle(picture, mask)
        if on_plan is not None:
            on_plan(settled[0])
        jobs, execution = run_jobs(self, jobs, *settled, progress)
        return assemble(picture, jobs, self.scale, holes), settled[0], execution

    def encode_picture(
        self,
        picture: Picture,
        encode: Encode,
        *,
        progress: Progress | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        mask: Mask | None = None,
    ) -> tuple[Plan, Execution]:
        """Run a picture as `run_picture` does and call `encode(result, rows)`.

        That may be in another thread and before the result is computed: `rows` tells how far it is.
        """
        holes, jobs, settled = self._settle(picture, mask)
        if on_plan is not None:
            on_plan(settled[0])
        return settled[0], run_and_encode(self, picture, jobs, settled, holes, progress, encode)

    def _settle(self, picture: Picture, mask: Mask | None) -> tuple[Mask | None, list[Job], tuple[Plan, Grid, Serving]]:
        """Plan a picture for the first candidate that compiles its window."""
        self.model.geometry()
        holes = holes_of(picture, self.model.image_channels, mask)
        depth = picture.pixels.shape[2] + (picture.alpha is not None)
        # With a mask, the network is given a copy.
        depth += 0 if holes is None else MASKED_CHANNELS[0]
        failed: list[str] = []
        subject = self._subject(picture.height, picture.width, picture.pixels.shape[2], picture.pixels.dtype.name)
        for serving in self.choices.settle(subject).servings:
            with_reasons = replace(serving, why=(*serving.why, *failed))
            made, grid = self._plan(picture.height, picture.width, depth, picture.pixels.dtype, with_reasons)
            jobs = picture_jobs(picture, self.model.image_channels, grid.output, holes)
            settled = holes, jobs, (made, grid, serving)
            if made.rows:
                return settled
            try:
                runner_of(self, jobs[0], grid.window, serving, serving.precision, made.batch)
            except BackendError as error:
                failed.append(f"{serving.backend} can't compile this window: {error}")
            except MemoryError:
                # Smaller windows are what running it comes to.
                return settled
            else:
                return settled
        raise BackendError("; ".join(failed))

    def _plan(self, height: int, width: int, depth: int, dtype: np.dtype[Any], serving: Serving) -> tuple[Plan, Grid]:
        out_h, out_w = self.footprint.output_size(height, width)
        image_bytes = (height * width + out_h * out_w) * depth * dtype.itemsize
        if serving.device.startswith("cuda"):
            # They are this machine's, and the budget the GPU's.
            check_held(image_bytes, serving.device)
            image_bytes = 0
        size = (self._subject(height, width, depth, dtype.name).images, height, width)
        if size[0] > 1 and not serving.device.startswith("cuda"):
            # Results of a channel each are put together in a copy.
            image_bytes += out_h * out_w * depth * dtype.itemsize
        return plan_picture(self.model, size, image_bytes, self.request(), serving)

    def _subject(self, height: int, width: int, depth: int, dtype: str) -> Subject:
        self.model.geometry()
        # A network of one channel sees each of an image's colours as an image.
        return Subject(3 if self.model.image_channels[0] == 1 and depth >= 3 else 1, height, width, dtype)

    def session(
        self, serving: Serving, images: int, window: tuple[int, int], precision: Precision | None = None
    ) -> Session:
        """Compile for windows of one shape, or return the session that was; in the serving's own precision by default.

        Raises:
            BackendError: the backend can't compile it.
        """
        key = SessionKey(serving.backend, images, window, precision or serving.precision, serving.threads)
        return cast(Session, self._sessions.get(key))

    def request(self) -> Request:
        """Return what the user asked for, with the memory budget filled in."""
        return replace(self.options.request, memory=self.budget())

    def pixel_session(
        self, serving: Serving, images: int, window: tuple[int, int], dtype: np.dtype[Any], precision: Precision
    ) -> PixelSession:
        """Compile for windows of integer pixels, or return the session that was.

        Raises:
            BackendError: the backend can't compile it.
        """
        key = SessionKey(serving.backend, images, window, precision, serving.threads, dtype.name)
        return cast(PixelSession, self._sessions.get(key))

    def forget(self, window: tuple[int, int]) -> None:
        """Give up what was compiled for windows of a shape."""
        self._sessions.forget(lambda key: key.window == window)


def load(
    source: str | os.PathLike[str] | nn.Module,
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    tile: int | str = "auto",
    halo: int | str = "exact",
    schedule: str = "auto",
    memory: int | str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    measure_seconds: float = MEASURE_SECONDS,
) -> Engine:
    """Load a model and choose the backend that will run it.

    Args:
        source: a bundled name, a .safetensors, .pth, .pt, .ckpt or .onnx file, or a module.
        device: auto, cpu, cuda or cuda:N.
        backend: auto, or the name of one (`tilefuse doctor` lists them).
        precision: auto, fp32, bf16 or fp16.
        tile: auto, 0 for the whole image, or the edge of a tile in input pixels.
        halo: exact, or a number of input pixels (the result may then be approximate).
        schedule: auto, whole, windows or rows (see `tilefuse.streaming`).
        memory: budget in bytes or as "2GiB"; half of the free RAM, or 80 % of a GPU's free memory, when None.
        cache_dir: where measured choices are kept; the user's cache when None (or TILEFUSE_CACHE_DIR).
        measure_seconds: how long choosing may measure before a job that is large enough to repay it; 0 for never.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: an option has no such value.
        BackendError: no backend can serve, each with its reason.
    """
    options = Options.parse(device, backend, precision, tile, halo, schedule, memory, cache_dir, measure_seconds)
    return _engine(load_model(source), options)


def _engine(model: Model, options: Options) -> Engine:
    candidates = choose(model, options)
    device = candidates[0].device
    budget = Budget(device, options.request.memory)
    choices = Choices(model, options, candidates, budget)
    return Engine(model, options, candidates, choices, budget, session_cache(model, device, budget))
