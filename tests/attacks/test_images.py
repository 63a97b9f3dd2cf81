"""Bad image files end in one ImageError, quickly, in bounded memory, whatever is wrong with them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.attacks import images as attacks
from tilefuse.errors import ImageError
from tilefuse.images import Picture, read_image

# Pillow warns about what it then raises.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parents[2]

# Reads every file in one process, which alone can tell how much memory they took.
READ_ALL = """
import json, pathlib, resource, sys, time
from tests.attacks.images import build
from tilefuse.errors import TilefuseError
from tilefuse.images import Picture, read_image
from tilefuse.images.quiet import quiet_decoders

results = {}
attacks = build(pathlib.Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, path, expected in attacks:
    started = time.perf_counter()
    try:
        with quiet_decoders():
            read_image(path)
        outcome = "accepted"
    except TilefuseError as error:
        outcome = f"{type(error).__name__}: {error}"
    results[name] = (str(path), expected, outcome, time.perf_counter() - started)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"results": results, "grown_kib": peak - before}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("attacks")
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_every_attack_is_refused_in_one_line_that_names_file_and_fault(outcome: dict[str, object]) -> None:
    assert len(outcome["results"]) > 60
    for name, (path, expected, said, _) in outcome["results"].items():
        assert said.startswith(f"ImageError: {path}: "), (name, said)
        assert expected in said, (name, said)
        assert said.isprintable(), (name, said)


def test_no_attack_takes_long(outcome: dict[str, object]) -> None:
    assert {name: seconds for name, (*_, seconds) in outcome["results"].items() if seconds > 2} == {}


def test_all_attacks_together_stay_in_bounded_memory(outcome: dict[str, object]) -> None:
    assert outcome["grown_kib"] < 150_000, "a file of a few kilobytes must not cost a decoded image's memory"


def read_or_none(path: Path) -> Picture | None:
    """Return the picture, or None when it is refused; any other error than ImageError is a failure."""
    try:
        return read_image(path, max_pixels=1_000_000)
    except ImageError:
        return None


@pytest.mark.parametrize("name", attacks.truncatable())
def test_a_file_cut_at_any_offset_is_refused_or_read_whole(tmp_path: Path, name: str) -> None:
    data = attacks.truncatable()[name]
    path = tmp_path / name
    path.write_bytes(data)
    whole = read_image(path)
    offsets = [*range(0, len(data) - 30, 1 + len(data) // 300), *range(len(data) - 30, len(data))]
    refused = 0
    for length in reversed(offsets):
        os.truncate(path, length)
        cut = read_or_none(path)
        refused += cut is None
        if cut is not None:
            np.testing.assert_array_equal(cut.pixels, whole.pixels, err_msg=f"cut at {length} of {len(data)}")
    # Only the bytes after the last pixel (checksums, end markers) may be missing.
    assert refused >= len(offsets) - 24


@pytest.mark.parametrize("name", attacks.truncatable())
def test_random_damage_raises_nothing_but_image_errors(tmp_path: Path, name: str) -> None:
    generator, data = random.Random(name), attacks.truncatable()[name]
    path = tmp_path / name
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(generator.choice((1, 2, 8))):
            place = generator.randrange(min(generator.choice((200, len(damaged))), len(damaged)))
            damaged[place] = generator.randrange(256)
        path.write_bytes(damaged)
        read_or_none(path)


def test_a_host_program_s_pillow_limit_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    for name in ("gray.png", "baseline.jpg", "raw.tif", "lzw.tif", "still.gif", "plain.bmp", "lossy.webp"):
        (tmp_path / name).write_bytes(attacks.truncatable()[name])
        assert read_image(tmp_path / name).width == 11
    assert sys.modules["PIL.Image"].MAX_IMAGE_PIXELS == 10
    with pytest.raises(ImageError, match="past the limit of 76 pixels"):
        read_image(tmp_path / "gray.png", max_pixels=76)


def test_unprintable_names_are_escaped(tmp_path: Path) -> None:
    for name in ("two\nlines.png", "bell\a.png", "\udcff.png", "nul\0.png"):
        with pytest.raises(ImageError) as raised:
            read_image(tmp_path / name)
        assert str(raised.value).isprintable()
