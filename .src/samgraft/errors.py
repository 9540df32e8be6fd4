"""Named errors of samgraft.

Every error is a :class:`SamgraftError` and also the built-in that fits, so that it can be caught either way. A message
names the value that was got, what was expected, and what to do about it.
"""


class SamgraftError(Exception):
    """Base class of every error that samgraft raises on purpose."""


class ShapeError(SamgraftError, ValueError):
    """An array or tensor has a shape that cannot be used."""


class NoMatchError(SamgraftError, ValueError):
    """A graft target, registry name or label matched nothing; nothing was changed."""


class CheckpointError(SamgraftError, RuntimeError):
    """A weight or adapter file is damaged, foreign, incomplete, or belongs to another backbone."""


class GeometryError(SamgraftError, ValueError):
    """Two grids differ, or a grid cannot be represented without changing it."""


class InputError(SamgraftError, ValueError):
    """A file or folder cannot be read as the image, volume or label that it should be."""


class PromptError(SamgraftError, ValueError):
    """A prompt lies outside the image, is degenerate, or does not fit the model."""


class ConfigError(SamgraftError, ValueError):
    """A configuration is contradictory or names an unknown option."""


class OutputError(SamgraftError, OSError):
    """A result could not be written; nothing half written was left behind."""


class MissingDependencyError(SamgraftError, ImportError):
    """An optional package is needed; the message names the pip command."""
