"""Public names and signatures, compared with api_surface.json: a change of the API is a decision, not an accident.

After a wanted change ``python -m tests.architecture.test_api_surface`` writes the list anew; commit it with the code.
"""

import importlib
import inspect
import json
from pathlib import Path

SURFACE = Path(__file__).with_name("api_surface.json")
PACKAGES = ("samgraft", "samgraft.adapters", "samgraft.domains", "samgraft.volumetric", "samgraft.recipes")
REGISTRIES = ("BACKBONES", "DECODERS", "GRAFTS", "PROMPTERS")


def surface() -> dict[str, object]:
    """Names in ``__all__`` of each package, parameters of the public functions, entries of the registries, errors."""
    public = {name: sorted(getattr(importlib.import_module(name), "__all__", ())) for name in PACKAGES}
    root = importlib.import_module("samgraft")
    adapters = importlib.import_module("samgraft.adapters")
    errors = importlib.import_module("samgraft.errors")
    functions = {
        name: list(inspect.signature(getattr(root, name)).parameters) for name in root.__all__ if name[0] != "_"
    }
    return {
        "names": public,
        "parameters": functions,
        "registries": {name: list(getattr(adapters, name).names()) for name in REGISTRIES},
        "errors": sorted(name for name in vars(errors) if name.endswith("Error")),
    }


def test_public_names_and_parameters_are_the_listed_ones() -> None:
    assert surface() == json.loads(SURFACE.read_text()), "see the docstring of this file"


def test_issue_names_exist() -> None:
    names = surface()["names"]
    assert isinstance(names, dict)
    assert set(names["samgraft"]) == {"__version__", "attach", "load_adapter", "load_backbone", "open", "segment"}
    assert set(REGISTRIES) <= set(names["samgraft.adapters"])


if __name__ == "__main__":
    SURFACE.write_text(json.dumps(surface(), indent=2) + "\n")
