"""Recorded choices: what is found again, what is ignored and said so, and what a cache that fails costs (nothing)."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tilefuse import verdicts
from tilefuse.candidates import Candidate
from tilefuse.errors import UsageError
from tilefuse.measurement import Measurement
from tilefuse.options import cache_folder
from tilefuse.verdicts import Verdict, recall, record

KEY = {
    "model": "abc",
    "bucket": [1, 64, 64],
    "versions": {"torch": "2"},
    "threads": 2,
    "backends": ["ncnn", "onnxruntime", "openvino", "torch_eager"],
}
VERDICT = Verdict(
    48,
    64,
    (
        Measurement(Candidate("openvino", "bf16", 1, 2, 96), (104, 104), 0.2, 0.01, 1.0, 66.0, 2.5),
        Measurement(Candidate("ncnn", "fp32", 2), (48, 64), 0.4, 0.4, 0.0, math.inf),
        Measurement(
            Candidate("torch_eager", "bf16", 2), (48, 64), None, None, math.inf, -math.inf, reason="it differs"
        ),
        Measurement(Candidate("onnxruntime", "fp32", 2), (48, 64)),
    ),
)


def test_what_is_recorded_is_found_again(tmp_path: Path) -> None:
    assert recall(tmp_path / "none", KEY).verdict is None
    assert record(tmp_path / "made", KEY, VERDICT) == ""
    found = recall(tmp_path / "made", KEY)
    assert (found.verdict, found.note) == (VERDICT, "")
    assert [m.candidate.backend for m in VERDICT.right] == ["openvino", "ncnn"]
    assert [path.suffix for path in (tmp_path / "made").iterdir()] == [".json"]


@pytest.mark.parametrize("changed", ["model", "bucket", "versions", "threads", "backends"])
def test_anything_changed_is_another_question(tmp_path: Path, changed: str) -> None:
    record(tmp_path, KEY, VERDICT)
    assert recall(tmp_path, {**KEY, changed: "other"}).verdict is None


def recorded(folder: Path) -> tuple[Path, Any]:
    record(folder, KEY, VERDICT)
    (path,) = folder.iterdir()
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: '{"key": 1}',
        lambda text: text.replace("0.2", "NaN"),
        lambda text: text.replace("0.2", "-1"),
        lambda text: text.replace("0.2", "1e999"),
        lambda text: text.replace('"bf16"', '"int4"'),
        lambda text: text.replace('"threads": 1', '"threads": 0'),
        lambda text: text.replace('"tile": 96', '"tile": -96'),
        lambda text: text.replace('"abc"', '"another"'),
        lambda text: text + " " * (1 << 20),
        lambda text: "\x00\xff",
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_and_said_so(tmp_path: Path, damage: Any) -> None:
    path, _ = recorded(tmp_path)
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    with pytest.warns(UserWarning, match="damaged or foreign"):
        found = recall(tmp_path, KEY)
    assert found.verdict is None
    assert "damaged or foreign" in found.note
    assert str(path) in found.note
    # What is measured then takes its place.
    record(tmp_path, KEY, VERDICT)
    assert recall(tmp_path, KEY).verdict == VERDICT


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("candidate",), None),
        (("candidate", "backend"), 7),
        (("candidate", "backend"), []),
        (("candidate", "backend"), "of_the_past"),
        (("candidate", "precision"), {}),
        (("candidate", "threads"), True),
        (("candidate", "threads"), 3),
        (("candidate", "workers"), 0),
        (("candidate", "workers"), 1 << 20),
        (("candidate", "batch"), 0),
        (("candidate", "batch"), 1 << 20),
        (("candidate", "tile"), 1 << 31),
        (("candidate", "tile"), 96.0),
        (("window",), [104, 104, 3]),
        (("window",), [104]),
        (("window",), [0, 104]),
        (("reason",), 5),
        (("reason",), "\ud800"),
        (("seconds",), None),
        (("seconds",), "0.2"),
        (("window_seconds",), 0),
        (("window_seconds",), "inf"),
        (("window_seconds",), 10**400),
        (("levels",), "nan"),
        (("psnr_db",), True),
        (("memory_factor",), "inf"),
        (("memory_factor",), -2.0),
        (("memory_factor",), 1e30),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_field_that_cannot_be_is_ignored_and_said_so(tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    path, plain = recorded(tmp_path)
    field = plain["verdict"]["measurements"][0]
    for name in place[:-1]:
        field = field[name]
    field[place[-1]] = value
    path.write_text(json.dumps(plain))
    with pytest.warns(UserWarning, match="tilefuse: .*damaged or foreign.*tilefuse warm"):
        found = recall(tmp_path, KEY)
    assert found.verdict is None
    assert "damaged or foreign" in found.note


@pytest.mark.parametrize("name", ["candidate", "window", "seconds", "memory_factor", "reason"])
def test_a_field_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    path, plain = recorded(tmp_path)
    del plain["verdict"]["measurements"][0][name]
    path.write_text(json.dumps(plain))
    with pytest.warns(UserWarning, match=f"it has no '{name}'"):
        assert recall(tmp_path, KEY).verdict is None


def test_a_verdict_that_lets_nobody_serve_is_ignored(tmp_path: Path) -> None:
    path, plain = recorded(tmp_path)
    plain["verdict"]["measurements"] = plain["verdict"]["measurements"][2:]
    path.write_text(json.dumps(plain))
    with pytest.warns(UserWarning, match="nobody may serve"):
        assert recall(tmp_path, KEY).verdict is None


def test_what_is_ignored_is_told_once(tmp_path: Path) -> None:
    path, _ = recorded(tmp_path)
    path.write_text("{")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            recall(tmp_path, KEY)
    assert len(caught) == 1


def test_of_latents_there_are_no_windows(tmp_path: Path) -> None:
    drawn = Verdict(0, 0, (Measurement(Candidate("openvino", "fp32", 2), (0, 0), 0.2, 0.2, 0.0, math.inf),))
    record(tmp_path, KEY, drawn)
    assert recall(tmp_path, KEY).verdict == drawn


def test_more_measurements_than_are_ever_made_are_ignored(tmp_path: Path) -> None:
    path, plain = recorded(tmp_path)
    plain["verdict"]["measurements"] *= 100
    path.write_text(json.dumps(plain))
    with pytest.warns(UserWarning, match="no list of measurements"):
        assert recall(tmp_path, KEY).verdict is None


def test_a_file_of_another_format_answers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = recorded(tmp_path)
    monkeypatch.setattr(verdicts, "_FORMAT", verdicts._FORMAT + 1)
    assert recall(tmp_path, KEY).verdict is None
    # Under the name that the new format asks for, too.
    (tmp_path / verdicts._name(KEY)).write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match="another question"):
        assert recall(tmp_path, KEY).verdict is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_writing_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    record(tmp_path, KEY, VERDICT)
    before = [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]
    monkeypatch.setattr(os, "replace", fail)
    if isinstance(error, OSError):
        with pytest.warns(UserWarning, match="No space left"):
            assert "No space left" in record(tmp_path, KEY, VERDICT)
    else:
        with pytest.raises(KeyboardInterrupt):
            record(tmp_path, KEY, VERDICT)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == before


def test_a_folder_that_can_not_be_written_warns_and_goes_on(ordinary_folder: Path) -> None:
    ordinary_folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.warns(UserWarning, match="can't be recorded.*TILEFUSE_CACHE_DIR"):
        note = record(ordinary_folder / "verdicts", KEY, VERDICT)
    assert "will be measured again" in note
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            record(ordinary_folder / "verdicts", KEY, VERDICT)
    assert len(caught) == 1


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "verdicts").write_text("mine")
    with pytest.warns(UserWarning, match="can't be recorded"):
        record(tmp_path / "verdicts", KEY, VERDICT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "can't be read" in recall(tmp_path / "verdicts", KEY).note
    assert (tmp_path / "verdicts").read_text() == "mine"


def test_processes_and_threads_that_write_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_verdicts import *\n"
        "for _ in range(60): record(Path(sys.argv[1]), KEY, VERDICT)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1])
    with ThreadPoolExecutor(4) as pool:
        while other.poll() is None:
            notes = list(pool.map(lambda _: (record(tmp_path, KEY, VERDICT), recall(tmp_path, KEY)), range(8)))
            assert all(note == "" and found.verdict == VERDICT for note, found in notes)
    assert other.returncode == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_where_choices_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEFUSE_CACHE_DIR", str(tmp_path))
    assert cache_folder(None) == tmp_path / "verdicts"
    assert cache_folder(tmp_path / "asked") == tmp_path / "asked" / "verdicts"
    monkeypatch.delenv("TILEFUSE_CACHE_DIR")
    assert "tilefuse" in str(cache_folder(None))
    with pytest.raises(UsageError, match="name is empty"):
        cache_folder("")
