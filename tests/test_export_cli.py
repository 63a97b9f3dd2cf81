"""`tilefuse export` as a user types it, and what importing the export side costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.exporting import onnx, tracing_once
from tilefuse import cli
from tilefuse.errors import ExportError, ImageError, UsageError

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tracing_once")]
__all__ = ["tracing_once"]


def invoke(*arguments: object) -> tuple[str, Exception | None]:
    result = CliRunner().invoke(cli.cli, ["export", *map(str, arguments)], standalone_mode=False)
    return result.output, result.exception


def test_a_model_is_exported_and_compared(tmp_path: Path) -> None:
    output, error = invoke("espcn-x2", "-o", tmp_path / "m.onnx", "--precision", "fp16", "--keep-fp32-io")
    assert error is None
    lines = output.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'm.onnx'}: fp16, opset 20, ")
    assert lines[1] == "image [batch, 3, height, width] -> image_out [batch, 3, 2*height, 2*width]"
    assert sum(line.startswith("ONNX Runtime on ") for line in lines) == 3
    assert lines[-1].startswith("the reference evaluator on ")
    assert onnx.load(tmp_path / "m.onnx").graph.node


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("espcn-x2", "-o", "there.onnx"), UsageError, "--overwrite"),
        (("espcn-x2", "-o", "a.onnx", "--precision", "int8"), UsageError, "--calibration"),
        (("espcn-x2", "-o", "a.onnx", "--precision", "int8", "--calibration", "broken"), ImageError, "png"),
        (("no-such-model", "-o", "a.onnx"), Exception, "no bundled model"),
        (("espcn-x2", "-o", "nowhere/a.onnx"), UsageError, "does not exist"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(
    arguments: tuple[str, ...], kind: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_bytes(b"mine")
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"\x89PNG")
    _, error = invoke(*arguments)
    assert isinstance(error, kind)
    assert words in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "there.onnx"]
    assert Path("there.onnx").read_bytes() == b"mine"


def test_the_exit_statuses_are_those_of_usage_and_of_models() -> None:
    assert (UsageError.exit_code, ExportError.exit_code) == (2, 4)


def test_importing_the_export_side_imports_neither_torch_nor_onnx() -> None:
    code = "import sys, tilefuse.export; print(sorted({'torch', 'onnx', 'onnxscript'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
