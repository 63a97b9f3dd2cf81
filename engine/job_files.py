"""The files of a streamed job beside its output, and the last step: the result takes its name."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tilefuse.errors import UsageError
from tilefuse.images.outputs import shown
from tilefuse.naming import flush_folder, rename_new
from tilefuse.storage.flat import disk_errors


@dataclass(frozen=True)
class JobFiles:
    """`part` holds the finished windows, `journal` says which, `encoded` is the result before it takes its name."""

    output: Path

    @property
    def part(self) -> Path:
        """The unfinished result, a raster."""
        return self._beside("part")

    @property
    def journal(self) -> Path:
        """The journal, which is also the lock."""
        return self._beside("journal")

    @property
    def encoded(self) -> Path:
        """The encoded result; a folder for formats of several files."""
        return self._beside("out")

    def _beside(self, kind: str) -> Path:
        return self.output.with_name(f"{self.output.name}.tilefuse-{kind}")

    def target(self) -> Path:
        """Return where to encode, with nothing of an earlier try left there."""
        remove(self.encoded)
        if self.output.suffix.lower() != ".dzi":
            return self.encoded
        self.encoded.mkdir()
        return self.encoded / self.output.name

    def take_back(self) -> None:
        """Remove what is encoded; an .npy result that is the raster itself, moved, becomes the raster again."""
        if self.output.suffix.lower() == ".npy" and self.encoded.is_file() and not os.path.lexists(self.part):
            os.rename(self.encoded, self.part)
        else:
            remove(self.encoded)

    def begin_flush(self) -> None:
        """Have the system write what is encoded so far, so that `flush_encoded` need not wait for all of it."""
        if hasattr(os, "posix_fadvise") and self.encoded.is_file():
            descriptor = os.open(self.encoded, os.O_RDONLY)
            try:
                # Pages that no one needs any more are let go of, and those that were not written are sent off first.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def flush_encoded(self) -> None:
        """Make the encoded result durable."""
        with disk_errors("the result"):
            if self.encoded.is_dir():
                os.sync()
                return
            descriptor = os.open(self.encoded, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def published(self) -> bool:
        """Tell whether the encoded result has taken its name already; finish the move when it was interrupted."""
        if not os.path.lexists(self.encoded):
            return os.path.lexists(self.output)
        if self.output.is_file() and self.encoded.is_file() and self.output.samefile(self.encoded):
            self.encoded.unlink()
            return True
        return False

    def publish(self, *, overwrite: bool) -> None:
        """Give the encoded result its name.

        Raises:
            UsageError: something took the name meanwhile, and `overwrite` is false.
        """
        with disk_errors("the result"):
            try:
                if self.output.suffix.lower() == ".dzi":
                    self._publish_pyramid(overwrite)
                elif overwrite:
                    if self.output.is_dir():
                        shutil.rmtree(self.output)
                    os.replace(self.encoded, self.output)
                else:
                    rename_new(self.encoded, self.output)
            except FileExistsError as error:
                raise UsageError(f"{shown(self.output)}: appeared while the job ran; move it, then --resume") from error
            flush_folder(self.output.absolute().parent)

    def _publish_pyramid(self, overwrite: bool) -> None:
        """Move the folder of tiles, then the file that names it: a viewer never sees a file without tiles."""
        tiles = f"{self.output.stem}_files"
        source, place = self.encoded / tiles, self.output.with_name(tiles)
        move = os.replace if overwrite else rename_new
        if source.exists():
            if place.exists() and overwrite:
                shutil.rmtree(place)
            move(source, place)
        move(self.encoded / self.output.name, self.output)
        shutil.rmtree(self.encoded)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there; a link itself, never what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
