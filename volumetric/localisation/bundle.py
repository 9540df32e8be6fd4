"""A locator in one file (``*.locate``): safetensors with a JSON header, as adapters have; nothing is unpickled.

Tensors: ``network.*``; per class v ``codes.v``, ``sides.v``, ``patches.v.<scale>``, and of annotated volume n
``templates.v.n`` (image) and ``landmarks.v.n``. The header (metadata key "samgraft-locator") holds the configurations,
the classes, shapes of templates, wall distances measured on the annotated volumes, how volumes became network input,
and a hash of the tensors. Format 1 had no templates.
"""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from samgraft.adapters.bundle import json_header, samgraft_version, tensors_hash, write_atomic
from samgraft.adapters.parts import check_state
from samgraft.errors import CheckpointError, ConfigError
from samgraft.volumetric.localisation.landmarks import LANDMARKS
from samgraft.volumetric.localisation.locator import Locator, LocatorConfig
from samgraft.volumetric.localisation.network import STRIDES, PositionConfig, PositionNet
from samgraft.volumetric.localisation.templates import Template

FORMAT = 2
_KEY = "samgraft-locator"
_FIELDS = {"format", "network", "locator", "classes", "templates", "errors_mm", "tensors_sha256", "meta"}


def save_locator(path: str | PathLike[str], locator: Locator, *, meta: Mapping[str, Any] | None = None) -> Path:
    """Write a locator; an existing file is replaced in one step.

    Args:
        path: ``*.locate`` by convention.
        locator: What is written.
        meta: How volumes became network input (axes, intensity), and how it was trained. JSON types.

    Raises:
        CheckpointError: a tensor that is not finite, or a header that is not JSON.
        OutputError: the file cannot be written; nothing half written is left.
    """
    tensors = _tensors(locator)
    check_state(tensors, tensors)
    header = {
        "format": FORMAT,
        "samgraft": samgraft_version(),
        "network": locator.network.config.to_dict(),
        "locator": locator.config.to_dict(),
        "classes": {str(value): name for value, name in locator.classes.items()},
        "templates": {str(v): [list(one.image.shape) for one in some] for v, some in locator.templates.items()},
        "errors_mm": {str(value): errors for value, errors in locator.errors.items()},
        "tensors_sha256": tensors_hash(tensors),
        "meta": dict(meta or {}),
    }
    try:
        text = json.dumps(header, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"locator header is not plain JSON: {error}; put numbers and strings in meta") from error
    write_atomic(Path(path), safetensors.torch.save(tensors, metadata={_KEY: text}))
    return Path(path)


def read_locator_header(path: str | PathLike[str]) -> dict[str, Any]:
    """The header, without the tensors.

    Raises:
        CheckpointError: missing, damaged, no locator, or of a newer format.
    """
    source = Path(path)
    header = json_header(source, _KEY, what="locator", remedy="make one with samgraft locate fit")
    if header.get("format") != FORMAT or not set(header) >= _FIELDS:
        raise CheckpointError(
            f"{source} has format {header.get('format')!r} and lacks {sorted(_FIELDS - set(header))}; this samgraft "
            f"reads format {FORMAT}; make it again with samgraft locate fit, or update samgraft"
        )
    return header


def load_locator(path: str | PathLike[str]) -> tuple[Locator, dict[str, Any]]:
    """Read a locator.

    Returns:
        The locator, and ``meta`` of its header.

    Raises:
        CheckpointError: missing or damaged, or tensors that do not fit the header.
    """
    source, header = Path(path), read_locator_header(path)
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(source)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{source} is damaged: {error}; copy it again") from error
    if tensors_hash(state) != header["tensors_sha256"]:
        raise CheckpointError(f"{source} is damaged: its tensors do not have the hash that its header states")
    try:
        network = PositionNet(PositionConfig(**header["network"]))
        config = LocatorConfig(**header["locator"])
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"{source} was written by another version: {error}; update samgraft") from error
    classes = {int(value): str(name) for value, name in header["classes"].items()}
    empty = _empty(network, config, classes, header["templates"])
    check_state(_tensors(empty), state)
    own = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    network.load_state_dict(own)
    network.eval().requires_grad_(False)
    loaded = Locator(
        network,
        config,
        classes=classes,
        codes={value: state[f"codes.{value}"] for value in classes},
        patches={value: [state[f"patches.{value}.{level}"] for level in range(len(STRIDES))] for value in classes},
        sides={value: state[f"sides.{value}"] for value in classes},
        templates={
            value: [
                Template(image=state[f"templates.{value}.{n}"], landmarks=state[f"landmarks.{value}.{n}"])
                for n in range(len(some))
            ]
            for value, some in empty.templates.items()
        },
        errors={int(value): errors for value, errors in header["errors_mm"].items()},
    )
    return loaded, dict(header["meta"])


def _tensors(locator: Locator) -> dict[str, Tensor]:
    """All tensors by name."""
    found = {f"network.{key}": value for key, value in locator.network.state_dict().items()}
    for value in locator.classes:
        found[f"codes.{value}"], found[f"sides.{value}"] = locator.codes[value], locator.sides[value]
        found |= {f"patches.{value}.{level}": patch for level, patch in enumerate(locator.patches[value])}
        found |= {f"templates.{value}.{n}": one.image for n, one in enumerate(locator.templates[value])}
        found |= {f"landmarks.{value}.{n}": one.landmarks for n, one in enumerate(locator.templates[value])}
    return {key: value.detach().cpu().contiguous() for key, value in found.items()}


def _empty(
    network: PositionNet,
    config: LocatorConfig,
    classes: Mapping[int, str],
    shapes: Mapping[str, Sequence[Sequence[int]]],
) -> Locator:
    """A locator of the right shapes, from those of the templates."""
    count = {value: len(shapes[str(value)]) for value in classes}
    width, cells = network.config.width, config.patch**3
    return Locator(
        network,
        config,
        classes=classes,
        codes={value: torch.zeros(n, LANDMARKS, 3) for value, n in count.items()},
        patches={
            value: [torch.zeros(n, LANDMARKS, width * factor, cells) for factor in (1, 2, 4)]
            for value, n in count.items()
        },
        sides={value: torch.zeros(n, 3) for value, n in count.items()},
        templates={
            value: [
                Template(image=torch.zeros(*shape, dtype=torch.float16), landmarks=torch.zeros(LANDMARKS, 3))
                for shape in shapes[str(value)]
            ]
            for value in classes
        },
    )
