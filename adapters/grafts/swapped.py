"""Parameters of a frozen module exchanged for others, and put back as the same objects, hence bit-exact."""

from typing import cast

from torch import nn


class SwappedParameters:
    """Remembers what it exchanged."""

    def __init__(self) -> None:
        """Nothing exchanged."""
        self._originals: list[tuple[nn.Module, str, nn.Parameter | None]] = []

    def __len__(self) -> int:
        """How many parameters are exchanged now."""
        return len(self._originals)

    def swap(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        """Make ``parameter`` the one called ``name`` of ``module``, which may have had None there (no bias)."""
        self._originals.append((module, name, cast(nn.Parameter | None, getattr(module, name))))
        setattr(module, name, parameter)

    def restore(self) -> None:
        """Put the original parameters back, on the device and in the type that their place has now."""
        while self._originals:
            module, name, original = self._originals.pop()
            if original is not None:
                original.data = original.data.to(getattr(module, name))
            setattr(module, name, original)
