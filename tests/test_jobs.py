"""Jobs: colour and alpha go through networks of one and three channels, and come back as what they were."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.pictures import Array, noise
from tilefuse.errors import ImageError
from tilefuse.images import Picture
from tilefuse.jobs import Job, assemble, picture_jobs

DTYPES = ["uint8", "uint16", "float32"]


def run(picture: Picture, channels: tuple[int, int], scale: int = 2) -> Picture:
    """Run a picture through a stand-in network, which repeats pixels `scale` times each way."""
    jobs = picture_jobs(picture, channels, (picture.height * scale, picture.width * scale))
    for job in jobs:
        fill(job, scale)
    return assemble(picture, jobs, Fraction(scale))


def fill(job: Job, scale: int) -> None:
    grown = enlarged(job.source, scale)
    job.result[:] = grown[..., :1] if job.result.shape[3] < grown.shape[3] else grown


def enlarged(stack: Array, scale: int) -> Array:
    return stack.repeat(scale, axis=-3).repeat(scale, axis=-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 5)])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_comes_back_as_it_was(dtype: str, size: tuple[int, int], depth: int, channels: int) -> None:
    picture = Picture(noise((*size, depth), dtype))
    result = run(picture, (channels, channels))
    assert result.pixels.dtype == dtype
    assert result.alpha is None
    np.testing.assert_array_equal(result.pixels, enlarged(picture.pixels, 2))


@pytest.mark.parametrize(
    ("depth", "channels", "source", "result"),
    [
        (1, (1, 1), (1, 3, 5, 1), (1, 6, 10, 1)),
        (3, (1, 1), (3, 3, 5, 1), (3, 6, 10, 1)),
        (1, (3, 3), (1, 3, 5, 1), (1, 6, 10, 1)),
        (3, (3, 3), (1, 3, 5, 3), (1, 6, 10, 3)),
        (1, (1, 3), (1, 3, 5, 1), (1, 6, 10, 3)),
        (1, (3, 1), (1, 3, 5, 1), (1, 6, 10, 1)),
        (3, (3, 1), (1, 3, 5, 3), (1, 6, 10, 1)),
    ],
)
def test_shapes(depth: int, channels: tuple[int, int], source: tuple[int, ...], result: tuple[int, ...]) -> None:
    (job,) = picture_jobs(Picture(noise((3, 5, depth), "uint8")), channels, (6, 10))
    assert (job.source.shape, job.result.shape) == (source, result)


@pytest.mark.parametrize("channels", [(2, 2), (4, 4), (3, 4), (1, 2), (0, 0)])
def test_other_channels_are_refused_before_the_work(channels: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"takes images of {channels[0]} channels and gives {channels[1]}"):
        picture_jobs(Picture(noise((3, 5, 3), "uint8")), channels, (6, 10))


def test_a_network_that_colours_gray_takes_no_colour() -> None:
    with pytest.raises(ImageError, match="convert the picture to gray first"):
        picture_jobs(Picture(noise((3, 5, 3), "uint8")), (1, 3), (6, 10))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [1, 3])
def test_varying_alpha_goes_through_the_network(dtype: str, channels: int, depth: int) -> None:
    picture = Picture(noise((9, 7, depth), dtype), noise((9, 7), dtype))
    jobs = picture_jobs(picture, (channels, channels), (18, 14))
    assert [job.source.shape[3] for job in jobs][1:] == [1]
    result = run(picture, (channels, channels))
    assert result.alpha is not None
    assert result.alpha.dtype == dtype
    np.testing.assert_array_equal(result.alpha, enlarged(picture.alpha[..., None], 2)[..., 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_constant_alpha_stays_behind_and_as_it_is(dtype: str, share: float) -> None:
    full = 1 if dtype == "float32" else np.iinfo(dtype).max
    value = np.dtype(dtype).type(full * share)
    picture = Picture(noise((3, 5, 3), dtype), np.full((3, 5), value))
    assert len(picture_jobs(picture, (3, 3), (6, 10))) == 1
    result = run(picture, (3, 3))
    assert result.alpha is not None
    assert (result.alpha.shape, result.alpha.dtype) == ((6, 10), dtype)
    assert (result.alpha == value).all()


def test_alpha_off_by_what_networks_are_off_is_mended_where_flat() -> None:
    alpha = np.zeros((8, 12), np.uint8)
    alpha[:, 6:] = 255
    picture = Picture(noise((8, 12, 3), "uint8"), alpha)
    jobs = picture_jobs(picture, (3, 3), (8, 12))
    jobs[0].result[:], jobs[1].result[:] = jobs[0].source, np.clip(jobs[1].source, 1, 254)
    result = assemble(picture, jobs, Fraction(1)).alpha
    assert result is not None
    assert [set(column) for column in result.T.tolist()] == [{0}] * 5 + [{1}, {254}] + [{255}] * 5


def test_float_alpha_is_clipped_and_float_colour_is_not() -> None:
    alpha = np.array([[0.0, 0.5, 1.0]], np.float32)
    picture = Picture(np.ones((1, 3, 3), np.float32), alpha)
    jobs = picture_jobs(picture, (3, 3), (1, 3))
    jobs[0].result[:], jobs[1].result[:] = 1.5, [[[-0.25], [0.5], [1.25]]]
    result = assemble(picture, jobs, Fraction(1))
    np.testing.assert_array_equal(result.alpha, [[0, 0.5, 1]])
    assert (result.pixels == 1.5).all()


def test_colour_that_transparency_hides_does_not_reach_the_network() -> None:
    pixels = np.zeros((1, 4, 3), np.uint8)
    pixels[0, :2] = (200, 100, 50)
    pixels[0, 2:] = (0, 255, 0)
    picture = Picture(pixels, np.array([[255, 255, 0, 0]], np.uint8))
    source = picture_jobs(picture, (3, 3), (1, 4))[0].source
    assert (source == (200, 100, 50)).all()
    assert (picture.pixels[0, 2:] == (0, 255, 0)).all()


@pytest.mark.parametrize(
    ("depth", "channels", "kept"), [(1, (1, 1), True), (1, (3, 3), True), (3, (1, 1), True), (3, (3, 3), True),
                                    (1, (1, 3), False), (3, (3, 1), False), (1, (3, 1), True)],
)  # fmt: skip
def test_a_profile_stays_with_its_number_of_channels(depth: int, channels: tuple[int, int], kept: bool) -> None:
    picture = Picture(noise((3, 5, depth), "uint8"), icc=b"profile")
    assert run(picture, channels).icc == (b"profile" if kept else None)


def test_other_metadata_stays_and_the_printed_size_too() -> None:
    picture = Picture(noise((4, 6, 1), "uint8"), dpi=(300, 150.5), exif=b"Exif\0\0II*\0", notes=("read",), mode="L")
    result = assemble(picture, picture_jobs(picture, (1, 1), (6, 9)), Fraction(3, 2))
    assert result.dpi == (450, 225.75)
    assert (result.exif, result.notes, result.mode) == (picture.exif, picture.notes, picture.mode)
    assert run(Picture(noise((4, 6, 1), "uint8")), (1, 1)).dpi is None
