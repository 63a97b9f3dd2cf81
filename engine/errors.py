"""Named errors. Each message says what was given, what was expected and what to do."""


class TilefuseError(Exception):
    """Base of every error tilefuse raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(TilefuseError):
    """The call itself is wrong: an unknown name, an output that already stands, an output that can't be written."""

    exit_code = 2


class ImageError(TilefuseError):
    """The image can't be read: missing, truncated, of an unsupported kind, or too large to decode safely."""

    exit_code = 3


class ModelError(TilefuseError):
    """The model can't be read or is not one the engine can run as asked."""

    exit_code = 4


class ExportError(ModelError):
    """A model could not be exported, or the exported file did not match the original."""


class CapacityError(TilefuseError):
    """The job does not fit into the memory budget."""

    exit_code = 5


class BackendError(TilefuseError):
    """A backend can't serve: it is missing, unknown, or does not support this model or precision."""

    exit_code = 6


class DeviceError(TilefuseError):
    """The device failed while running; only running out of memory is ever retried."""

    exit_code = 6
