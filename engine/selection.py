"""Choose what serves an image: by what was measured on this machine, before that by what the graph predicts.

A choice is made once for a model, a bucket of shapes and an image type, and stands for as long as the engine lives:
images of one kind are always computed in one way, whichever thread asks first.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import RLock

import torch

from tilefuse.candidates import allowed_backends
from tilefuse.compiling import Budget
from tilefuse.cost_model import predicted_image_seconds
from tilefuse.latent_measurement import measure_latents
from tilefuse.machine import cpu_name, cpu_threads
from tilefuse.measurement import Measurement, Subject, Task, measure, measured_table
from tilefuse.model import Model
from tilefuse.options import Options, checked_seconds
from tilefuse.planner import Serving, Timed
from tilefuse.verdicts import Key, Verdict, recall, record

# A job is measured for when it is predicted to take this many times as long as measuring: choosing well gives back a
# third or more.
REPAID_AT = 3.0
_LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "ncnn", "triton")
_DRIVER = Path("/proc/driver/nvidia/version")
_CORNER_PX = 2048
_SMALLEST_BUCKET, _LARGEST_BUCKET = 64, 4096


@dataclass(frozen=True)
class Choice:
    """Who may serve, the best first, and the verdict that says so, None before a measurement."""

    servings: tuple[Serving, ...]
    verdict: Verdict | None = None


class Choices:
    """The choices of one engine. Safe to ask from many threads; what is being measured is waited for."""

    def __init__(self, model: Model, options: Options, predicted: tuple[Serving, ...], budget: Budget) -> None:
        self._budget = budget
        self._model = model
        self._options = options
        self._predicted = predicted
        self._question = _question(model, options, predicted[0].device)
        self._lock = RLock()
        self._made: dict[Subject, Choice] = {}

    def look(self, subject: Subject) -> Choice:
        """Return the choice as it stands, without measuring."""
        with self._lock:
            return self._made.get(bucket(subject)) or self._recorded(subject)[0]

    def settle(self, subject: Subject) -> Choice:
        """Return the choice for an image that is to be run, measuring first where that is repaid."""
        place = bucket(subject)
        with self._lock:
            if place not in self._made:
                choice, note = self._recorded(subject)
                if choice.verdict is None and self._repaid(subject):
                    choice = self._measured(subject, self._options.measure_seconds, note, unasked=True)
                self._made[place] = choice
            return self._made[place]

    def warm(self, subject: Subject, seconds: float | None = None) -> Choice:
        """Measure now, whatever is known, and choose by that from now on."""
        budget = self._options.measure_seconds if seconds is None else checked_seconds(seconds)
        with self._lock:
            self._made[bucket(subject)] = self._measured(subject, budget, "")
            return self._made[bucket(subject)]

    def _measurable(self) -> bool:
        """Tell whether there is something to hold results against: a graph of images, or one of latents."""
        graph = self._model.graph
        return graph is not None and (self._model.footprint is not None or graph.inputs[0].name == "latent")

    def _repaid(self, subject: Subject) -> bool:
        budget = self._options.measure_seconds
        if (
            budget <= 0
            or self._model.graph is None
            or self._model.footprint is None
            or self._options.request.halo_px is not None
        ):
            return False
        first = self._predicted[0]
        size = (subject.images, subject.height, subject.width)
        predicted = predicted_image_seconds(self._model, first.backend, first.precision, size, cpu_threads())
        return predicted >= REPAID_AT * budget

    def _recorded(self, subject: Subject) -> tuple[Choice, str]:
        if not self._measurable():
            return Choice(self._predicted), ""
        found = recall(self._options.cache_dir, self._key(subject))
        if found.verdict is None:
            return Choice(_noted(self._predicted, found.note)), found.note
        return self._choice(found.verdict, "recorded"), ""

    def _measured(self, subject: Subject, seconds: float, note: str, *, unasked: bool = False) -> Choice:
        # Of larger images a corner tells as much, and what it takes to measure stays small.
        corner = replace(subject, height=min(subject.height, _CORNER_PX), width=min(subject.width, _CORNER_PX))
        backends = allowed_backends(self._options.backend)
        if unasked and len(backends) > 1:
            # A compiler would take most of the time, and memory of its own beside the job's.
            backends = tuple(name for name in backends if name != "inductor")
        task = Task(
            model=self._model,
            subject=corner,
            device=self._predicted[0].device,
            backends=backends,
            policy=self._options.precision,
            tile=self._options.request.tile,
            threads=cpu_threads(),
            memory=self._budget(),
            budget_s=seconds,
        )
        found = measure(task) if self._model.footprint is not None else measure_latents(task)
        verdict = Verdict(corner.height, corner.width, found)
        failed = record(self._options.cache_dir, self._key(subject), verdict) if verdict.right else ""
        chosen = self._choice(verdict, "measured")
        return replace(chosen, servings=_noted(chosen.servings, note, failed))

    def _choice(self, verdict: Verdict, how: str) -> Choice:
        if not verdict.right:
            why = "nothing could be measured in the time"
            return Choice(_noted(self._predicted, why, *measured_table(verdict.measurements)), verdict)
        measured = servings_of(verdict, self._predicted[0].device, how)
        known = {(serving.backend, serving.precision) for serving in measured}
        # Who could serve without being measured still stands by for windows that the others can't compile.
        rest = [serving for serving in self._predicted if (serving.backend, serving.precision) not in known]
        return Choice((*measured, *rest), verdict)

    def _key(self, subject: Subject) -> Key:
        place = bucket(subject)
        return {**self._question, "bucket": [place.images, place.height, place.width], "type": place.dtype}


def bucket(subject: Subject) -> Subject:
    """Round a shape up to powers of two: images that share one are served alike."""
    height, width = (
        min(_LARGEST_BUCKET, max(_SMALLEST_BUCKET, 1 << (edge - 1).bit_length()))
        for edge in (subject.height, subject.width)
    )
    return replace(subject, height=height, width=width)


def servings_of(verdict: Verdict, device: str, how: str) -> tuple[Serving, ...]:
    """Turn measurements into who may serve, the fastest first, each with the times of all its tiles."""
    groups: dict[tuple[str, str, int, int, int], list[Measurement]] = {}
    for found in verdict.right:
        c = found.candidate
        groups.setdefault((c.backend, c.precision, c.threads, c.workers, c.batch), []).append(found)
    table = measured_table(verdict.measurements)
    servings = []
    for group in groups.values():
        best = group[0]
        at = f"{verdict.width}x{verdict.height}" if verdict.width else "a batch of latents"
        about = f"{best.candidate.backend} in {best.candidate.precision}: {how} at {at}"
        # One measurement for each backend: the one of the largest windows tells the least of the library itself.
        told = [m for m in verdict.measurements if m.candidate.backend == best.candidate.backend and m.memory_factor]
        largest = max(told, key=lambda m: m.window[0] * m.window[1], default=None)
        servings.append(
            Serving(
                best.candidate.backend,
                device,
                best.candidate.precision,
                (about, *table),
                best.candidate.threads,
                best.candidate.workers,
                tuple(
                    Timed(m.candidate.tile, m.window[0] * m.window[1], m.window_seconds or 0.0)
                    for m in group
                    if m.window_seconds
                ),
                None if largest is None else largest.memory_factor,
                best.candidate.batch,
            )
        )
    return tuple(servings)


def _question(model: Model, options: Options, device: str) -> Key:
    """Everything but the image that a choice depends on: when any of it changes, the choice is measured anew."""
    return {
        "model": model.sha256,
        # Two modules may share a class's name and weights and still compute differently.
        "structure": hashlib.blake2b(str(model.graph).encode(), digest_size=8).hexdigest(),
        "precision": options.precision,
        "tile": options.request.tile,
        "backends": sorted(allowed_backends(options.backend)),
        "device": _device_name(device),
        "driver": _driver(device),
        "threads": cpu_threads(),
        "versions": dict(_versions()),
    }


def _noted(servings: tuple[Serving, ...], *notes: str) -> tuple[Serving, ...]:
    return tuple(replace(serving, why=(*serving.why, *filter(None, notes))) for serving in servings)


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    from tilefuse import __version__

    installed: dict[str, str] = {}
    for folder in sys.path:
        try:
            # The names that installers give folders say it; importlib.metadata parses files, for ten times as long.
            entries = os.listdir(folder or ".")
        except OSError:
            # Not there, an archive, or none of this user's: an import skips it as well.
            continue
        for entry in entries:
            stem, _, kind = entry.rpartition(".")
            if kind in ("dist-info", "egg-info"):
                name, _, number = stem.partition("-")
                installed.setdefault(name.replace("_", "-").lower(), number)
    return (("tilefuse", __version__), *((name, installed[name]) for name in _LIBRARIES if name in installed))


@cache
def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"{cpu_name()}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


@cache
def _driver(device: str) -> str:
    """Return the first line of what the NVIDIA driver says of itself; processors have none."""
    if not device.startswith("cuda"):
        return ""
    try:
        return _DRIVER.read_text().splitlines()[0]
    except (OSError, IndexError):
        return str(torch.version.cuda)
