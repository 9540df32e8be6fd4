"""A name -> factory table, used only where users choose by string (backbones, grafts, prompters, decoders)."""

import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from samgraft.errors import ConfigError, NoMatchError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to entries; refuses duplicates and answers a typo with the closest names.

    Args:
        kind: What one entry is, in the singular, for messages ("graft", "backbone").
        more: Module that registers further entries and lies above the table's own package; it is imported when somebody
            asks for names, so that a file that names such an entry can be read by whoever reads files.
    """

    def __init__(self, kind: str, *, more: str = "") -> None:
        """Create an empty table."""
        self.kind = kind
        self._more = more
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that stores its argument under ``name``.

        Raises:
            ConfigError: ``name`` is already taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                taken = self._entries[name]
                raise ConfigError(f"{self.kind} {name!r} is already registered as {taken!r}; pick another name")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            NoMatchError: no such entry; the message lists the closest names and all names.
        """
        if name not in self:  # which imports what registers more
            close = difflib.get_close_matches(name, self._entries, n=1)
            hint = f" did you mean {close[0]!r}?" if close else ""
            raise NoMatchError(f"unknown {self.kind} {name!r};{hint} known: {', '.join(self.names()) or 'none'}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._complete()
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is registered."""
        if name not in self._entries:
            self._complete()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the sorted names."""
        return iter(self.names())

    def _complete(self) -> None:
        """Import what registers further entries, once."""
        if self._more:
            importlib.import_module(self._more)
            self._more = ""
