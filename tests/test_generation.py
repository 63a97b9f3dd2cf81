"""Drawing from latents: seeds, labels, batches, sheets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tilefuse
from tilefuse.errors import ModelError, UsageError
from tilefuse.generation import contact_sheet, slerp


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


def test_a_strip_leads_from_one_seed_to_the_other(digits: tilefuse.Engine) -> None:
    strip = digits.interpolate(3, 8, 5, label=2)
    assert (strip.shape, strip.dtype) == ((5, 28, 28, 1), np.uint8)
    ends = [digits.generate(1, seed=seed, label=2)[0].astype(int) for seed in (3, 8)]
    assert np.abs(strip[0] - ends[0]).max() <= 1
    assert np.abs(strip[-1] - ends[1]).max() <= 1
    assert np.abs(strip[2] - ends[0]).max() > 1


def test_latents_between_keep_their_length() -> None:
    first, last = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(0))
    between = slerp(first, last, torch.linspace(0, 1, 5))
    lengths = between.norm(dim=1)
    low, high = sorted((first.norm().item(), last.norm().item()))
    assert (lengths > 0.97 * low).all()
    assert (lengths < 1.03 * high).all()
    assert torch.allclose(slerp(first, 2 * first, torch.tensor([0.5])), 1.5 * first)


@pytest.mark.parametrize(
    ("count", "label", "words"), [(1, 2, "at least 2"), (3, None, "which label"), (3, 10, "0 to 9")]
)
def test_strips_that_cannot_be(digits: tilefuse.Engine, count: int, label: int | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        digits.interpolate(0, 1, count, label=label)
