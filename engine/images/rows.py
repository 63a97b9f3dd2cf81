"""How far the rows of a picture are that is encoded while it is made."""

from __future__ import annotations

from typing import Protocol


class Rows(Protocol):
    """Tells an encoder, which goes from top to bottom, what it may read."""

    def wait(self, rows: int) -> None:
        """Return once the first `rows` rows are what they are to be, or raise the reason why they won't be."""
        ...

    def passed(self, rows: int) -> None:
        """Hear that the first `rows` rows will not be read again."""
        ...


class AllRows:
    """The rows of a picture that is there."""

    def wait(self, rows: int) -> None:
        """Return at once."""

    def passed(self, rows: int) -> None:
        """Keep the rows."""


ALL_ROWS = AllRows()
