"""What a classifier says of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tilefuse.backends.base import Session
from tilefuse.errors import DeviceError, ModelError, UsageError
from tilefuse.fitting import fit
from tilefuse.graph import Graph
from tilefuse.images import Picture
from tilefuse.model import Model
from tilefuse.planner import input_shapes

# Classified at once; one session serves every full batch.
BATCH = 16


@dataclass(frozen=True)
class Classification:
    """The likeliest class of a picture, from 0, and the probability of every one."""

    label: int
    confidences: tuple[float, ...]

    @property
    def confidence(self) -> float:
        """The probability of the likeliest class."""
        return self.confidences[self.label]


def classify(model: Model, session: Callable[[int], Session], pictures: Sequence[Picture]) -> list[Classification]:
    """Classify pictures of any size; `session` gives a compiled session for a number of images.

    Each is made gray where the network wants it and resized to the network's size. The digit classifier was trained on
    light strokes on black.

    Raises:
        ModelError: the network is no classifier of images.
        UsageError: there are no pictures.
    """
    if not pictures:
        raise UsageError("no pictures to classify; give at least one")
    shape = _image_shape(model)
    found = []
    for start in range(0, len(pictures), BATCH):
        images = torch.cat([fit(picture, shape) for picture in pictures[start : start + BATCH]])
        logits = session(len(images)).run(images)[0].double()
        if not torch.isfinite(logits).all():
            raise DeviceError(f"{model.name} gave scores that are not finite")
        chances = logits.softmax(1)
        found += [Classification(int(row.argmax()), tuple(row.tolist())) for row in chances]
    return found


def _image_shape(model: Model) -> tuple[int, int, int]:
    """Return channels, height and width of what a classifier takes."""
    if model.graph is not None and _scores(model.graph):
        _, channels, height, width = model.graph.inputs[0].shape
        if channels and height and width:
            return channels, height, width
    raise ModelError(f"{model.name} is no classifier of images of one size; use one such as cnn-digits")


def _scores(graph: Graph) -> bool:
    """Tell whether a graph turns one image of a fixed size into scores [N, classes]."""
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 4 or None in graph.inputs[0].shape[1:]:
        return False
    return len(graph.shapes(*input_shapes(graph, 1, (0, 0)))[graph.outputs[0]]) == 2
