"""The examples run as they stand and give what the engine gives."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import tilefuse
from tilefuse.sample import sample_picture

pytestmark = pytest.mark.thorough
EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    """Import an example by its path: the folder is no package."""
    spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def engine() -> tilefuse.Engine:
    return tilefuse.load("espcn-x2")


def alike(result: np.ndarray, expected: np.ndarray) -> None:
    """Two engines of one model may be served by two backends: a level apart at most."""
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= 1


def test_pillow_pipeline(tmp_path: Path, engine: tilefuse.Engine) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    pictures = {name: sample_picture(20 + i, 30, seed=i) for i, name in enumerate("abc")}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(source / f"{name}.png")
    # A phone's photograph lies on its side, and says so where PNG does not keep it.
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pictures["a"]).save(source / "phone.jpeg", exif=turned)
    example("pillow_pipeline").main(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["a.png", "b.png", "c.png", "phone.png"]
    assert Image.open(target / "phone.png").size == (40, 60)
    for name, picture in pictures.items():
        alike(np.asarray(Image.open(target / f"{name}.png")), engine(picture))


def test_torch_dataloader() -> None:
    batches = example("torch_dataloader").main()
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 80, 120), (2, 3, 80, 120)]
    assert all(batch.min() >= 0 and batch.max() <= 1 for batch in batches)


def test_opencv_frames(tmp_path: Path, engine: tilefuse.Engine) -> None:
    import cv2

    source, target = tmp_path / "in.avi", tmp_path / "out.avi"
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[..., 2] = 200  # red, in OpenCV's order
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"MJPG"), 5, (48, 32))
    for level in (0, 40, 80):
        writer.write(frame + np.array([level, 0, 0], np.uint8))
    writer.release()
    example("opencv_frames").main(str(source), str(target))
    results = list(example("opencv_frames").frames(cv2.VideoCapture(str(target))))
    originals = list(example("opencv_frames").frames(cv2.VideoCapture(str(source))))
    assert len(results) == 3
    for result, original in zip(results, originals, strict=True):
        # JPEG loses a few levels, more at the border; red taken for blue would be a hundred.
        assert result.shape == (64, 96, 3)
        assert np.abs(result.astype(int) - engine(original, bgr=True)).mean() < 6


def test_fastapi_service(engine: tilefuse.Engine) -> None:
    from fastapi import testclient

    service = example("fastapi_service")
    client = testclient.TestClient(service.app)
    picture = sample_picture(20, 30)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    answer = client.post("/upscale", content=file.getvalue())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    alike(np.asarray(Image.open(io.BytesIO(answer.content))), engine(picture))
    assert client.post("/upscale", content=b"not an image").status_code == 415
    service.MAX_BYTES = 100
    assert client.post("/upscale", content=file.getvalue()).status_code == 413
