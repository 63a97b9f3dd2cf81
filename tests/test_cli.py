"""The command line as a user walks it: real runs, exit codes, one line an error, nothing left behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

import tilefuse as tilefuse_package
from tests.attacks import images as image_attacks
from tests.attacks import models as model_attacks
from tests.conftest import hear_interrupts
from tilefuse import cli
from tilefuse.commands import run
from tilefuse.commands.inputs import Pair
from tilefuse.commands.progress import Pixels
from tilefuse.export.checkpoints import bundled
from tilefuse.images.outputs import shown

pytestmark = pytest.mark.thorough

MODEL = "espcn-x4"


def tilefuse(*arguments: object) -> Result:
    """Run the command line in this process, as `tilefuse` would run."""
    return CliRunner().invoke(entry, [str(a) for a in arguments])


@cli.click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@cli.click.argument("arguments", nargs=-1, type=cli.click.UNPROCESSED)
def entry(arguments: tuple[str, ...]) -> None:
    saved, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["tilefuse", *arguments]
    try:
        cli.main()
    finally:
        sys.argv = saved
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).save(path)
    return path


def one_line(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("tilefuse: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


def test_a_file_is_upscaled(picture: Path, tmp_path: Path) -> None:
    result = tilefuse("run", picture, "-o", tmp_path / "out.png", "-m", MODEL)
    assert (result.exit_code, result.output) == (0, "")
    assert Image.open(tmp_path / "out.png").size == (128, 96)


def test_explain_prints_the_plan(picture: Path, tmp_path: Path) -> None:
    result = tilefuse("run", picture, "-o", tmp_path / "out.png", "-m", MODEL, "--explain", "--tile", 16)
    assert "32x24 -> 128x96 (x4)" in result.stdout
    assert "tile 16: as asked" in result.stdout


def test_json_events(picture: Path, tmp_path: Path) -> None:
    result = tilefuse("run", picture, "-o", tmp_path / "out.png", "-m", MODEL, "--json", "--tile", 16)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["plan", *["progress"] * events[0]["windows"], "done"]
    assert events[0]["output_size"] == [128, 96]
    assert events[-1]["output"].endswith("out.png")
    assert result.stderr == ""


def test_a_folder_goes_into_a_folder(picture: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "results"
    folder.mkdir()
    for name in ("a.png", "b.jpg", "c.bmp"):
        Image.open(picture).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "._a.png").write_text("what macOS leaves beside a picture")
    (folder / "a folder.png").mkdir()
    assert tilefuse("run", folder, "-o", out, "-m", MODEL).exit_code == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.jpg", "c.png"]
    one_line(tilefuse("run", folder, "-o", out, "-m", MODEL), 2, "already exists")
    assert tilefuse("run", str(folder / "*.png"), picture, "-o", out, "-m", MODEL, "--overwrite").exit_code == 0


def test_one_bad_image_of_many_fails_alone(picture: Path, tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.png", tmp_path / "results"
    bad.write_bytes(picture.read_bytes()[:100])
    result = tilefuse("run", bad, picture, "-o", out, "-m", MODEL)
    assert result.exit_code == 7
    assert [p.name for p in out.iterdir()] == ["in.png"]
    assert "bad.png" in result.stderr
    assert "1 of 2 images failed" in result.stderr


# A line break, and what rich takes for an emoji and for markup, in a path its end too.
ODD_NAME = "a\nb:smile:[red]c[/nope]画"


@pytest.mark.parametrize("name", [ODD_NAME, b"\xff".decode(errors="surrogateescape")], ids=ascii)
def test_any_name_of_a_file_is_told_in_one_line(name: str, picture: Path, tmp_path: Path) -> None:
    source, out, bad = (tmp_path / f"{name}{end}" for end in (".png", "-x4.png", "-bad.png"))
    source.parent.mkdir(exist_ok=True)
    picture.rename(source)
    bad.write_bytes(b"no image")
    done = tilefuse("run", source, "-o", out, "-m", MODEL, "--explain")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith(f"{shown(out)}: 128x96 in ")
    assert done.stderr.count("\n") == 1
    one_line(tilefuse("run", bad, "-o", tmp_path / "none.png", "-m", MODEL), 3, f"{shown(bad)}: ")
    one_line(tilefuse("run", tmp_path / f"{name}.no", "-o", out, "-m", MODEL, "--overwrite"), 3, ".no: no")
    one_line(tilefuse("info", bad), 4)
    many = tilefuse("run", source, bad, "-o", tmp_path / "out", "-m", MODEL)
    assert (many.exit_code, many.stderr.count("\n")) == (7, 2)
    screen = io.StringIO()
    with run.progress_bars(Console(file=screen, force_terminal=True, width=200), disable=False) as bars:
        Pixels.of(bars, [Pair(source, out)])
    assert shown(source.name) in screen.getvalue()


def test_any_name_of_a_model_is_told(tmp_path: Path) -> None:
    model = tmp_path / f"{ODD_NAME}.safetensors"
    model.parent.mkdir()
    shutil.copy(bundled()[MODEL], model)
    described = tilefuse("info", model)
    assert described.exit_code == 0, described.output
    assert shown(model.name) in described.stdout


def test_two_inputs_of_one_name_are_refused(picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.open(picture).save(other / "in.png")
    one_line(tilefuse("run", picture, other / "in.png", "-o", tmp_path / "out", "-m", MODEL), 2, "both become")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--backend", "cudnn"), 2, ["cudnn", "torch_eager"]),
        (("--precision", "int4"), 2, ["int4", "bf16"]),
        (("--tile", "big"), 2, ["tile", "auto"]),
        (("--memory", "plenty"), 2, ["plenty", "768MiB"]),
        (("--memory", "100KiB", "--tile", "0"), 5, ["needs about", "100.0 KiB"]),
        (("--backend", "ncnn", "--precision", "fp16"), 6, ["ncnn"]),
        (("--device", "cuda"), 6, ["CUDA"]),
    ],
)
def test_options_that_cannot_be_met(
    picture: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    if "cuda" in arguments:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    one_line(tilefuse("run", picture, "-o", tmp_path / "out.png", "-m", MODEL, *arguments), code, *words)
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


def test_outputs_that_cannot_be(picture: Path, tmp_path: Path) -> None:
    before = picture.read_bytes()
    one_line(tilefuse("run", picture, "-o", tmp_path / "out.xyz", "-m", MODEL), 2, ".png")
    one_line(tilefuse("run", picture, "-o", tmp_path / "none" / "out.png", "-m", MODEL), 2, "does not exist")
    one_line(tilefuse("run", picture, "-o", picture, "-m", MODEL, "--overwrite"), 2, "the input itself")
    one_line(tilefuse("run", picture, "-o", picture, "-m", MODEL), 2)
    assert picture.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


def test_what_is_no_model(picture: Path, tmp_path: Path) -> None:
    one_line(tilefuse("run", picture, "-o", tmp_path / "out.png", "-m", "espcn-x5"), 4, "espcn-x4")
    one_line(tilefuse("info", tmp_path / "none.safetensors"), 4, "none.safetensors")


def test_every_ugly_image_ends_in_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tilefuse_package.load(MODEL)
    monkeypatch.setattr(tilefuse_package, "load", lambda *_, **__: engine)
    out = tmp_path / "out"
    out.mkdir()
    for name, path, expected in image_attacks.build(tmp_path):
        result = tilefuse("run", path, "-o", out / "out.png", "-m", MODEL)
        assert (result.exit_code, result.stderr.count("\n")) == (3, 1), f"{name}: {result.output}"
        assert expected in result.stderr, name
        assert list(out.iterdir()) == [], name


def test_every_ugly_model_ends_in_4(tmp_path: Path) -> None:
    for name, path, expected in model_attacks.build(tmp_path):
        result = tilefuse("info", path)
        assert (result.exit_code, result.stderr.count("\n")) == (4, 1), f"{name}: {result.output}"
        assert expected in result.stderr, name


def test_models_info_and_doctor_speak_json() -> None:
    listed = json.loads(tilefuse("models", "--json").stdout)
    assert next(row for row in listed if row["name"] == MODEL)["gain_db"] > 0.7
    described = json.loads(tilefuse("info", MODEL, "--json").stdout)
    assert (described["geometry"]["scale"], described["geometry"]["halo_px"]) == ("4", 4)
    found = json.loads(tilefuse("doctor", "--json").stdout)
    assert "torch_eager" in found["serving"]
    lines = tilefuse("models").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert sum(line.startswith("scale ") for line in tilefuse("info", MODEL).stdout.splitlines()) == 1
    for command in (("models",), ("info", MODEL), ("doctor",)):
        assert MODEL in tilefuse(*command).stdout or command == ("doctor",)


def test_every_command_is_told_in_a_whole_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = tilefuse("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert len(lines) == len(cli.cli.commands)
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []


def test_doctor_tells_where_choices_are_and_what_restricts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEFUSE_CACHE_DIR", str(tmp_path / "[b]cache"))
    monkeypatch.setenv("TILEFUSE_BACKENDS", "openvino,ncnn")
    folder = tmp_path / "[b]cache" / "verdicts"
    assert f"0 choices recorded in {folder}; TILEFUSE_CACHE_DIR moves it" in tilefuse("doctor").stdout
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    assert f"1 choices recorded in {folder}" in tilefuse("doctor").stdout
    assert "restricted to openvino,ncnn by TILEFUSE_BACKENDS" in tilefuse("doctor").stdout


def test_doctor_warns_of_two_onnxruntimes(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilefuse.commands import doctor

    monkeypatch.setattr(doctor, "version", lambda name: "1.0")
    assert any("onnxruntime-gpu are both installed" in line for line in doctor.examine()["warnings"])


def process(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from tilefuse.cli import main; main()", *(str(a) for a in arguments)]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_nothing(tmp_path: Path, sent: int, code: int) -> None:
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    Image.new("RGB", (1500, 1500)).save(source)
    arguments = process("run", source, "-o", out, "-m", MODEL, "--json", "--tile", 16, "--backend", "torch_eager")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, preexec_fn=hear_interrupts, **pipes) as running:
        assert running.stdout is not None
        while '"progress"' not in running.stdout.readline():
            assert running.poll() is None
        stopped = time.monotonic()
        running.send_signal(sent)
        running.stdout.read()
        assert running.wait() == code
        print(f"stopped in {time.monotonic() - stopped:.2f} s")
        told = running.stderr.read() if running.stderr else ""
    word = "interrupted" if sent == signal.SIGINT else "terminated"
    assert told.split("\n") == [
        "",
        f"tilefuse: {word}; nothing unfinished stands at {out}: the same command begins anew",
        "",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


def test_starting_is_quick() -> None:
    """The imports alone: their CPU time does not depend on what else the machine does."""

    def cpu_seconds(*arguments: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    bare = min(cpu_seconds("-c", "pass") for _ in range(3))
    library = min(cpu_seconds("-c", "import tilefuse") for _ in range(3))
    help_ = min(cpu_seconds("-c", "from tilefuse.cli import main; main()", "--help") for _ in range(3))
    print(f"python {bare:.3f} s, import tilefuse {library:.3f} s, tilefuse --help {help_:.3f} s")
    assert library < 0.3
    assert help_ < 0.5
