"""`tilefuse classify`: what a classifier says of images."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

import tilefuse
from tilefuse.classification import Classification
from tilefuse.images import quiet_decoders, read_image
from tilefuse.images.outputs import shown

SHOWN = 3


def classify_files(sources: Sequence[str], *, model: str, backend: str, as_json: bool) -> None:
    """Classify every image and print one line each, in the order given.

    Raises:
        ImageError: an image can't be read; nothing is printed then.
        ModelError: the model is no classifier.
    """
    with quiet_decoders():
        pictures = [read_image(source) for source in sources]
    engine = tilefuse.load(model, backend=backend)
    for source, found in zip(sources, engine.classify(pictures), strict=True):
        click.echo(_as_json(source, found) if as_json else _as_text(source, found))


def _as_json(source: str, found: Classification) -> str:
    return json.dumps({"source": source, "label": found.label, "confidences": [round(c, 6) for c in found.confidences]})


def _as_text(source: str, found: Classification) -> str:
    ranked = sorted(range(len(found.confidences)), key=lambda label: -found.confidences[label])[:SHOWN]
    others = ", ".join(f"{label} {found.confidences[label]:.1%}" for label in ranked[1:])
    return f"{shown(source)}: {found.label} ({found.confidence:.1%}); next {others}"
