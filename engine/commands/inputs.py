"""What the user named as input and output, turned into pairs of files."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tilefuse.errors import ImageError, UsageError
from tilefuse.images import FORMATS
from tilefuse.job_files import JobFiles
from tilefuse.storage import check_target
from tilefuse.storage.registry import RASTER_SUFFIXES

READABLE = (*FORMATS, ".npy", ".zarr", ".bmp", ".gif", ".ppm", ".pgm", ".tga")


@dataclass(frozen=True)
class Pair:
    """An input file and where its result goes."""

    source: Path
    output: Path


def finished(pair: Pair) -> bool:
    """Tell whether an output is there and nothing is left to do for it."""
    return pair.output.exists() and not JobFiles(pair.output).journal.exists()


def pair_files(inputs: Sequence[str], output: str, *, overwrite: bool, resume: bool = False) -> tuple[list[Pair], int]:
    """Match inputs with outputs: one file to a file, or files, folders and globs into a folder.

    With `resume`, those whose output is there and complete are left out, and counted; one file that is named together
    with its output is still done anew when `overwrite` is asked for.

    Raises:
        ImageError: an input names nothing.
        UsageError: two inputs would have the same output, or an output can't be written.
    """
    sources = [path for name in inputs for path in _expand(name)]
    target = Path(output)
    single = len(inputs) == 1 and len(sources) == 1 and not _is_folder(Path(inputs[0]))
    if single and not _is_folder(target) and (target.suffix or not output.endswith("/")):
        pairs = [Pair(sources[0], target)]
    else:
        if target.exists() and not target.is_dir():
            raise UsageError(f"{target}: several inputs need a folder, and this is a file")
        target.mkdir(parents=True, exist_ok=True)
        pairs = [Pair(source, target / _result_name(source)) for source in sources]
    taken: dict[Path, Path] = {}
    for pair in pairs:
        if pair.output in taken:
            raise UsageError(f"{taken[pair.output]} and {pair.source} would both become {pair.output}")
        taken[pair.output] = pair.source
        if pair.output.exists() and pair.source.exists() and pair.output.samefile(pair.source):
            raise UsageError(f"{pair.output}: the output is the input itself; choose another name")
    keep = resume and not (single and overwrite)
    left = [pair for pair in pairs if not (keep and finished(pair))]
    for pair in left:
        begun = JobFiles(pair.output).journal.exists()
        if not single and not resume and not overwrite and pair.output.exists() and not begun:
            raise UsageError(
                f"{pair.output}: already exists; give --resume to keep what is done and do the others, --overwrite to "
                "do all anew, or another folder"
            )
        check_target(pair.output, overwrite=overwrite or (resume and begun))
    return left, len(pairs) - len(left)


def _expand(name: str) -> list[Path]:
    path = Path(name)
    if _is_folder(path):
        # Hidden files are none of the user's own: macOS leaves one beside each picture on foreign disks.
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in READABLE and _is_listed(p))
        if not found:
            raise ImageError(f"{name}: a directory without images ({', '.join(READABLE)})")
        return found
    if not path.exists() and glob.has_magic(name):
        found = sorted(Path(p) for p in glob.glob(name, recursive=True) if not _is_folder(Path(p)))
        if not found:
            raise ImageError(f"{name}: no file has such a name")
        return found
    return [path]


def _result_name(source: Path) -> str:
    return source.name if source.suffix.lower() in (*FORMATS, *RASTER_SUFFIXES) else f"{source.stem}.png"


def _is_listed(path: Path) -> bool:
    return not path.name.startswith(".") and not _is_folder(path)


def _is_folder(path: Path) -> bool:
    """Tell a folder of images from an image that is a folder (Zarr)."""
    return path.is_dir() and not any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))
