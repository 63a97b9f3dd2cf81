"""Drawing from latents: seeds, labels, batches, sheets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tilefuse
from tilefuse.errors import ModelError, UsageError
from tilefuse.generation import contact_sheet


@pytest.fixture(scope="module")
def digits() -> tilefuse.Engine:
    return tilefuse.load("cgan-digits")


def test_the_same_seed_draws_the_same_images(digits: tilefuse.Engine) -> None:
    first = digits.generate(3, seed=1)
    assert (first.shape, first.dtype) == ((3, 28, 28, 1), np.uint8)
    assert np.array_equal(first, digits.generate(3, seed=1))
    assert not np.array_equal(first, digits.generate(3, seed=2))


def test_an_image_does_not_depend_on_how_many_are_drawn(digits: tilefuse.Engine) -> None:
    many, few = digits.generate(20, seed=4, label=3), digits.generate(2, seed=4, label=3)
    assert np.abs(many[:2].astype(int) - few).max() <= 1


def test_drawing_is_the_module_itself(digits: tilefuse.Engine) -> None:
    module = digits.model.module
    assert module is not None
    latent = torch.randn([4, module.latent_shape[0]], generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = module(latent, torch.nn.functional.one_hot(torch.full((4,), 5), 10).float())
    levels = ((expected + 1) / 2 * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(digits.generate(4, seed=7, label=5) - levels).max() <= 1


def test_labels_are_drawn_as_themselves(digits: tilefuse.Engine) -> None:
    classifier = tilefuse.load("cnn-digits")
    assert classifier.model.graph is not None
    drawn = digits.generate(200, seed=0).astype(np.float32) / 255
    scores = classifier.model.graph.evaluate(torch.from_numpy(drawn).permute(0, 3, 1, 2))[0]
    right = (scores.argmax(1) == torch.arange(200) % 10).float().mean().item()
    print(f"classified as their label: {right:.1%}")
    assert right >= 0.9


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_none(digits: tilefuse.Engine, label: int) -> None:
    with pytest.raises(UsageError, match="0 to 9"):
        digits.generate(1, label=label)


def test_what_draws_nothing() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        tilefuse.load("cgan-digits").generate(0)
    with pytest.raises(UsageError, match="knows no labels"):
        tilefuse.load("dcgan-digits").generate(1, label=3)
    with pytest.raises(ModelError, match="takes no latent"):
        tilefuse.load("espcn-x2").generate(1)


def test_a_sheet_holds_every_image() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    sheet = contact_sheet(images, gap_px=1)
    assert sheet.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    assert sorted(np.unique(sheet)) == [0, 1, 2, 3, 4, 255]
    assert (sheet[1:5, 8:14] == 1).all()
