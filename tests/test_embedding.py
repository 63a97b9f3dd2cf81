"""The engine inside other programs: order, bounds, errors and kinds are those of plain calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

import tilefuse
from tilefuse.embedding import Embedded, array_of, swap_channels
from tilefuse.errors import ImageError, UsageError
from tilefuse.export.generators.espcn import ESPCN


class Doubled(Embedded):
    """Stands for an engine: doubles numbers, and fails on negative ones."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def __call__(self, image, *, bgr=False):  # type: ignore[no-untyped-def]
        self.threads.add(threading.get_ident())
        if image < 0:
            raise ImageError(f"{image} is negative")
        return 2 * image + (1 if bgr else 0)


@pytest.fixture(scope="module")
def engine() -> tilefuse.Engine:
    torch.manual_seed(0)
    return tilefuse.load(ESPCN(2, features=(8, 4)).eval(), backend="torch_eager", precision="fp32")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)


def test_results_come_in_order() -> None:
    doubled = Doubled()
    assert list(doubled.stream(range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert list(doubled.stream([])) == []
    assert doubled.batch([3, 1], bgr=True) == [7, 3]
    assert threading.get_ident() not in doubled.threads


@pytest.mark.parametrize("look_ahead", [1, 2, 5])
def test_never_more_inputs_ahead_than_allowed(look_ahead: int) -> None:
    taken = []

    def inputs() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    results = Doubled().stream(inputs(), look_ahead=look_ahead)
    assert taken == []
    for done, result in enumerate(results, 1):
        assert result == 2 * (done - 1)
        assert len(taken) <= done - 1 + look_ahead
        assert len(taken) >= min(20, done - 1 + look_ahead)


def test_an_error_is_raised_where_its_result_was_due() -> None:
    results = Doubled().stream([1, 2, -3, 4], look_ahead=4)
    assert [next(results), next(results)] == [2, 4]
    with pytest.raises(ImageError, match="-3 is negative"):
        next(results)


def test_an_error_of_the_source_comes_after_the_results_before_it() -> None:
    def inputs() -> Iterator[int]:
        yield 1
        yield 2
        raise ConnectionError("camera unplugged")

    results = Doubled().stream(inputs(), look_ahead=5)
    assert [next(results), next(results)] == [2, 4]
    with pytest.raises(ConnectionError, match="unplugged"):
        next(results)


def test_a_stream_that_is_left_stops_its_thread() -> None:
    before = threading.active_count()
    results = Doubled().stream(iter(range(1000)))
    next(results)
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("look_ahead", [0, -1, True, 1.5])
def test_a_look_ahead_that_is_none_is_refused_at_once(look_ahead: object) -> None:
    with pytest.raises(UsageError, match="look_ahead"):
        Doubled().stream([1], look_ahead=look_ahead)


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        (None, "NoneType"),
        (5, "int"),
        (Image.new("RGB", (4, 4)), "Image"),
        ("photo.png", "str"),
        (b"photo", "bytes"),
        (np.zeros((9, 8, 3), np.uint8), "ndarray of 9x8x3"),
        (np.zeros((9, 8), np.uint8), "ndarray of 9x8"),
        (torch.zeros(3, 9, 8), "Tensor of 3x9x8"),
    ],
)
def test_what_is_no_series_of_images_is_refused_at_once(images: object, kind: str) -> None:
    for call in (Doubled().stream, Doubled().batch):
        with pytest.raises(ImageError, match=f"images: {kind} is no series of images; give a list"):
            call(images)


@pytest.mark.parametrize("stack", [np.zeros((2, 9, 8, 3), np.uint8), np.zeros((2, 9, 8), np.uint8)])
def test_a_stack_is_a_series_of_images(engine: tilefuse.Engine, stack: np.ndarray) -> None:
    assert [result.shape[:2] for result in engine.batch(stack)] == [(18, 16)] * 2


def test_async_calls_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=30)

    class Meeting(Embedded):
        def __call__(self, image, *, bgr=False):  # type: ignore[no-untyped-def]
            both.wait()
            return image

    async def run() -> list[str]:
        return list(await asyncio.gather(Meeting().acall("a"), Meeting().acall("b")))

    assert asyncio.run(run()) == ["a", "b"]


def test_stream_batch_and_acall_give_what_a_call_gives(engine: tilefuse.Engine, image: np.ndarray) -> None:
    images = [image, image[:7, :5], image[..., 0]]
    expected = [engine(each) for each in images]
    for results in (list(engine.stream(images)), engine.batch(images)):
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, wanted)
    np.testing.assert_array_equal(asyncio.run(engine.acall(image)), expected[0])
    kinds = engine.batch([Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1)])
    assert isinstance(kinds[0], Image.Image)
    assert isinstance(kinds[1], torch.Tensor)


class Speaks:
    """An image of another library: an array behind one protocol."""

    def __init__(self, array: np.ndarray, protocol: str) -> None:
        if protocol == "__array_interface__":
            self.__array_interface__ = array.__array_interface__
            self.array = array
        else:
            self.__dlpack__ = torch.from_numpy(array).__dlpack__
            self.__dlpack_device__ = torch.from_numpy(array).__dlpack_device__


@pytest.mark.parametrize("protocol", ["__array_interface__", "__dlpack__"])
def test_arrays_of_other_libraries_are_images(engine: tilefuse.Engine, image: np.ndarray, protocol: str) -> None:
    result = engine(Speaks(image, protocol))  # type: ignore[type-var]
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, engine(image))
    with pytest.raises(ImageError, match="channels must come last"):
        engine(Speaks(np.ascontiguousarray(image.transpose(2, 0, 1)), protocol))  # type: ignore[type-var]


def test_an_array_is_taken_without_a_copy(image: np.ndarray) -> None:
    for protocol in ("__array_interface__", "__dlpack__"):
        assert np.shares_memory(array_of(Speaks(image, protocol)), image)


def test_what_is_no_image_is_named(engine: tilefuse.Engine) -> None:
    with pytest.raises(ImageError, match="str is no image; give a numpy array"):
        engine("photo.png")  # type: ignore[type-var]

    class Broken:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **_: object) -> object:
            raise BufferError("on another planet")

    with pytest.raises(ImageError, match="Broken did not give its data: on another planet"):
        engine(Broken())  # type: ignore[type-var]


def test_bgr_in_gives_bgr_out(engine: tilefuse.Engine, image: np.ndarray) -> None:
    expected = engine(image)
    np.testing.assert_array_equal(engine(image[..., ::-1], bgr=True), expected[..., ::-1])
    np.testing.assert_array_equal(engine.batch([image[..., ::-1]], bgr=True)[0], expected[..., ::-1])
    assert not np.array_equal(engine(image[..., ::-1]), expected[..., ::-1])
    alpha = np.random.default_rng(1).integers(0, 256, (9, 12, 1), np.uint8)
    rgba, bgra = np.concatenate([image, alpha], 2), np.concatenate([image[..., ::-1], alpha], 2)
    np.testing.assert_array_equal(engine(bgra, bgr=True), swap_channels(engine(rgba)))
    np.testing.assert_array_equal(engine(image[..., 0], bgr=True), engine(image[..., 0]))


def test_bgr_is_for_arrays(engine: tilefuse.Engine, image: np.ndarray) -> None:
    with pytest.raises(ImageError, match="bgr=True is for numpy arrays"):
        engine(Image.fromarray(image), bgr=True)
