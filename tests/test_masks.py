"""Masks: what is a hole, what is refused, and what a network that fills holes is given."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.pictures import noise
from tilefuse.cli import cli
from tilefuse.errors import ImageError, TilefuseError, UsageError
from tilefuse.images import Picture
from tilefuse.jobs import MASKED_CHANNELS, assemble, picture_jobs
from tilefuse.masks import mask_of, read_mask

HOLES = np.array([[True, False, False], [False, True, True]])
FULL = {"uint8": 255, "uint16": 65535, "float32": 1}
GIVEN = [
    HOLES,
    HOLES.astype(np.uint8) * 255,
    HOLES.astype(np.uint16) * 65535,
    HOLES.astype(np.float32),
    HOLES.astype(np.float32)[None],
    HOLES[..., None],
    torch.from_numpy(HOLES),
    torch.from_numpy(HOLES)[None].float(),
    torch.from_numpy(HOLES).to(torch.bfloat16),
    Image.fromarray(HOLES),
    Image.fromarray(HOLES.astype(np.uint8) * 255),
]


@pytest.mark.parametrize("given", GIVEN, ids=[f"{type(g).__name__}-{i}" for i, g in enumerate(GIVEN)])
def test_every_kind_of_mask_says_the_same(given: Any) -> None:
    mask = mask_of(given)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, HOLES)


def test_the_lighter_half_of_the_grays_is_the_hole() -> None:
    assert mask_of(np.array([[0, 127, 128, 255]], np.uint8)).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((4, 4, 3), np.uint8), "expected a gray image"),
        (np.zeros((2, 4, 4), np.uint8), "expected a gray image"),
        (np.zeros((4, 4), np.int64), "int64"),
        (Image.new("RGB", (4, 4)), "colour"),
        (Image.new("LA", (4, 4)), "transparency"),
        (7, "a int"),
        ("no-such-hole.png", "no-such-hole"),
    ],
)
def test_what_is_no_mask_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        mask_of(given)


@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
def test_mask_files(tmp_path: Path, mode: str) -> None:
    levels = HOLES.astype(np.uint16) * 65535 if mode == "I;16" else HOLES if mode == "1" else np.uint8(255) * HOLES
    Image.fromarray(levels).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), HOLES)


def test_a_mask_file_in_colour_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png has colour"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_network_that_fills_holes_gets_black_and_the_mask(dtype: str, depth: int) -> None:
    picture = Picture(noise((2, 3, depth), dtype))
    (job,) = picture_jobs(picture, MASKED_CHANNELS, (2, 3), HOLES)
    assert job.source.shape == (1, 2, 3, 4)
    assert job.result.shape == (1, 2, 3, depth)
    assert not job.source[0, HOLES, :3].any()
    assert np.array_equal(job.source[0, ~HOLES, :3], np.broadcast_to(picture.pixels[~HOLES], (3, 3)))
    assert np.array_equal(job.source[0, ..., 3], HOLES * np.asarray(FULL[dtype], dtype))


def test_without_a_mask_there_are_no_holes() -> None:
    picture = Picture(noise((2, 3, 3), "uint8"))
    (job,) = picture_jobs(picture, MASKED_CHANNELS, (2, 3))
    assert np.array_equal(job.source[0, ..., :3], picture.pixels)
    assert not job.source[..., 3].any()


@pytest.mark.parametrize("dtype", FULL)
def test_known_pixels_and_known_alpha_come_back_to_the_last_bit(dtype: str) -> None:
    picture = Picture(noise((2, 3, 3), dtype), noise((2, 3, 1), dtype)[..., 0])
    jobs = picture_jobs(picture, MASKED_CHANNELS, (2, 3), HOLES)
    assert len(jobs) == 2
    for job in jobs:
        job.result[:] = FULL[dtype]
    result = assemble(picture, jobs, Fraction(1), HOLES)
    assert result.alpha is not None
    assert picture.alpha is not None
    assert np.array_equal(result.pixels[~HOLES], picture.pixels[~HOLES])
    assert np.array_equal(result.alpha[~HOLES], picture.alpha[~HOLES])
    assert (result.pixels[HOLES] == FULL[dtype]).all()


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ImageError, match="the mask is 3 x 2 pixels and the image 2 x 3"):
        picture_jobs(Picture(noise((3, 2, 3), "uint8")), MASKED_CHANNELS, (3, 2), HOLES)


def test_a_network_without_a_mask_is_given_none() -> None:
    with pytest.raises(UsageError, match="takes no mask"):
        picture_jobs(Picture(noise((2, 3, 3), "uint8")), (3, 3), (2, 3), HOLES)


@pytest.mark.parametrize(
    ("model", "mask", "code", "words"),
    [
        ("restore-inpaint", "small.png", 3, "the mask is 4 x 4 pixels and the image 40 x 32"),
        ("restore-inpaint", "colour.png", 3, "colour.png has colour"),
        ("restore-inpaint", "none.png", 3, "none.png"),
        ("espcn-x2", "mask.png", 2, "takes no mask"),
        ("restore-inpaint", "mask.png", 0, ""),
    ],
)
def test_the_command_line_takes_a_mask(tmp_path: Path, model: str, mask: str, code: int, words: str) -> None:
    Image.fromarray(noise((32, 40, 3), "uint8")).save(tmp_path / "in.png")
    Image.new("L", (4, 4)).save(tmp_path / "small.png")
    Image.new("RGB", (40, 32)).save(tmp_path / "colour.png")
    Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), ((12, 12), (16, 16)))).save(tmp_path / "mask.png")
    arguments = ["run", "in.png", "-o", "out.png", "-m", model, "--mask", mask, "--backend", "torch_eager"]
    filled = [str(tmp_path / a) if a.endswith(".png") else a for a in arguments]
    result = CliRunner().invoke(cli, filled)
    if code:
        assert isinstance(result.exception, TilefuseError)
        assert result.exception.exit_code == code
        assert words in str(result.exception)
    else:
        assert result.exit_code == 0, result.output
        before, after = (np.asarray(Image.open(tmp_path / name)) for name in ("in.png", "out.png"))
        assert ((before != after).any(2) <= np.asarray(Image.open(tmp_path / "mask.png")).astype(bool)).all()
        assert (before != after).any()
    assert (tmp_path / "out.png").exists() == (code == 0)
