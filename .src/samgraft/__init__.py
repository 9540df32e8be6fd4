"""Graft small trainable parts onto a frozen, promptable segmentation backbone, for any image that has a geometry.

The five names below are the whole path: open a file, load a backbone, attach grafts, load a trained adapter, segment.
They are loaded on first use, so that ``import samgraft`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samgraft.adapters.backbones import load_backbone
    from samgraft.adapters.graft import attach
    from samgraft.domains.opening import open_scene as open
    from samgraft.recipes.api import load_adapter, segment

__version__ = "0.1.0"

__all__ = ["__version__", "attach", "load_adapter", "load_backbone", "open", "segment"]

_LAZY = {
    "attach": ("samgraft.adapters.graft", "attach"),
    "load_adapter": ("samgraft.recipes.api", "load_adapter"),
    "load_backbone": ("samgraft.adapters.backbones", "load_backbone"),
    "open": ("samgraft.domains.opening", "open_scene"),
    "segment": ("samgraft.recipes.api", "segment"),
}
"""Public name -> (module, attribute). Strings, because the root imports nothing that lies above it."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    if name not in _LAZY:
        raise AttributeError(f"module 'samgraft' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name the lazy attributes too."""
    return sorted({*globals(), *__all__})
