"""What configurations of all methods (graft, prompter, decoder) have in common: a name, a way to and from JSON."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from samgraft.errors import ConfigError
from samgraft.registry import Registry

C = TypeVar("C", bound="MethodConfig")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of the configuration dataclasses: frozen, keyword-only, JSON types and tuples of them only."""

    method: ClassVar[str] = ""
    """Name in the registry; written into files, so it never changes."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping: ``method`` and every field (tuples become lists)."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"method": self.method, **plain}


def config_from_dict(registry: Registry[type[C]], data: Mapping[str, Any]) -> C:
    """Rebuild a configuration written by :meth:`MethodConfig.to_dict`.

    Args:
        registry: Where ``data["method"]`` is looked up.
        data: Mapping with ``method`` and field values; lists become tuples.

    Raises:
        NoMatchError: unknown method.
        ConfigError: no method, or a field that the method does not have (named, with the closest known one).
    """
    if "method" not in data:
        raise ConfigError(
            f"{registry.kind} configuration {dict(data)!r} has no 'method'; known: {', '.join(registry.names())}"
        )
    entry = registry.get(str(data["method"]))
    known = [field.name for field in fields(entry)]
    values = {key: _as_tuple(value) for key, value in data.items() if key != "method"}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{registry.kind} {entry.method!r} has no option {key!r}{hint} It has: {', '.join(known)}"
            )
    return entry(**values)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def check_choice(owner: str, option: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse ``value`` unless it is one of ``choices``.

    Raises:
        ConfigError: it is not; the message names the closest choice.
    """
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{owner}: {option} is {value!r}{hint} Choose from {', '.join(choices)}")


def check_positive(owner: str, option: str, value: float) -> None:
    """Refuse a value that is not above zero.

    Raises:
        ConfigError: ``value`` is zero, negative or NaN.
    """
    if not value > 0:
        raise ConfigError(f"{owner}: {option} is {value}; expected a number above 0")
