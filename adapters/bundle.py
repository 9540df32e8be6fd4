"""One file per adapter (``*.graft``): safetensors with a JSON header; a few MB, bound to one set of backbone weights.

The header (key "samgraft" of the safetensors metadata) says how to rebuild the parts, which backbone they belong to,
how images were normalised, what the classes are and how well it did. Nothing is ever unpickled, and what does not fit
is refused by name. Names keep their order: parts at one place are added up in it, and sums depend on it.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import config_from_dict
from samgraft.adapters.decoders import DECODERS
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import GRAFTS
from samgraft.adapters.parts import check_state
from samgraft.adapters.prompts import PROMPTERS
from samgraft.errors import CheckpointError, OutputError

FORMAT = 1
"""Version of the header's layout."""
EMBEDDED = {"graft-tiny-objects": Path(__file__).parent / "embedded" / "graft_tiny_objects.graft"}
"""Adapters in the package, by the name that stands for their file wherever one is read."""
_KEY = "samgraft"


@dataclass(frozen=True, kw_only=True)
class BundleMeta:
    """What a bundle says beside its tensors. JSON types only."""

    classes: dict[int, str] = field(default_factory=dict)
    """Label value -> name; 0 is background."""
    task: str = "semantic"
    """"semantic" or "instance"."""
    modality: str = ""
    """CT, MR, ultrasound, aerial, ...; free text."""
    intensity: dict[str, Any] | None = None
    """How values became [0, 1], as the domain describes it."""
    input_size: tuple[int, int] | None = None
    """(H, W) in pixels of the network input in training."""
    training: dict[str, Any] = field(default_factory=dict)
    """Summary: data, cases, steps, seconds, seed, commit."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Validation metrics, with n."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything else a recipe needs to repeat itself."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping (class numbers become strings)."""
        data = asdict(self)
        data["classes"] = {str(number): name for number, name in self.classes.items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BundleMeta":
        """Inverse of :meth:`to_dict`.

        Raises:
            CheckpointError: a field that this version does not know, by name.
        """
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise CheckpointError(
                f"adapter header has unknown fields {unknown}; it was written by a newer samgraft; update"
            )
        values = dict(data)
        values["classes"] = {int(number): str(name) for number, name in dict(values.get("classes") or {}).items()}
        size = values.get("input_size")
        values["input_size"] = None if size is None else (int(size[0]), int(size[1]))
        return cls(**values)


def save_bundle(
    path: str | os.PathLike[str],
    grafted: Grafted,
    *,
    meta: BundleMeta | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the attached parts of ``grafted`` and how to rebuild them.

    Args:
        path: File to write; ``.graft`` by convention. An existing file is replaced in one step.
        grafted: Attached parts; the backbone is named, not stored.
        meta: Classes, normalisation, training summary, metrics.
        state: Tensors to write, by the names of ``grafted.graft_state()``; None takes that. For parts whose tensors
            are split over processes.

    Raises:
        CheckpointError: a tensor is not finite, or ``state`` has other names or shapes.
        OutputError: the file cannot be written; nothing half written is left.
    """
    target = Path(path)
    own = grafted.graft_state()
    tensors = {key: value.detach().cpu().contiguous() for key, value in (own if state is None else state).items()}
    check_state(own, tensors)
    header = {
        "format": FORMAT,
        "samgraft": samgraft_version(),
        "backbone": {
            "name": grafted.backbone.spec.name,
            "sha256": grafted.base_hash,
            "mean": list(grafted.backbone.spec.mean),
            "std": list(grafted.backbone.spec.std),
        },
        "grafts": {name: config.to_dict() for name, config in grafted.configs.items()},
        "prompter": None if grafted.prompter_config is None else grafted.prompter_config.to_dict(),
        "decoder": None if grafted.decoder_config is None else grafted.decoder_config.to_dict(),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "tensors_sha256": tensors_hash(tensors),
        "meta": (meta or BundleMeta()).to_dict(),
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"adapter header is not plain JSON: {error}; put numbers, strings, lists and mappings in meta"
        ) from error
    write_atomic(target, safetensors.torch.save(tensors, metadata={_KEY: text}))
    return target


def bundle_path(path: str | os.PathLike[str]) -> Path:
    """The file of an adapter in the package, or ``path`` itself; a file that lies there comes first."""
    given = Path(path)
    return given if given.exists() else EMBEDDED.get(str(path), given)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a bundle, without reading its tensors; here and below a name of :data:`EMBEDDED` is a path.

    Raises:
        CheckpointError: the file is missing, damaged, no bundle, or of a newer format.
    """
    return _parse_header(bundle_path(path))


def read_meta(path: str | os.PathLike[str]) -> BundleMeta:
    """Classes, normalisation, training summary and metrics of a bundle.

    Raises:
        CheckpointError: as :func:`read_header`.
    """
    return BundleMeta.from_dict(_parse_header(bundle_path(path))["meta"])


def replace_meta(path: str | os.PathLike[str], meta: BundleMeta) -> None:
    """Write another ``meta`` into a bundle; tensors and everything else stay as they are.

    Raises:
        CheckpointError: as :func:`read_header`, or ``meta`` is not plain JSON.
        OutputError: the file cannot be written; the old one stays.
    """
    source = Path(path)
    header = {**_parse_header(source), "meta": meta.to_dict()}
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"adapter header is not plain JSON: {error}; put numbers and strings in meta") from error
    write_atomic(source, safetensors.torch.save(safetensors.torch.load_file(source), metadata={_KEY: text}))


def load_bundle(path: str | os.PathLike[str], backbone: Backbone) -> Grafted:
    """Attach what a bundle holds to ``backbone``; if anything does not fit, the backbone stays as it was.

    Raises:
        CheckpointError: missing or damaged file, another backbone (both hashes are named), unknown or missing
            tensors, wrong shapes, or non-finite values.
        NoMatchError: a method that this version does not know.
        ConfigError: the backbone already carries grafts.
    """
    source = bundle_path(path)
    header = _parse_header(source)
    expected, found = header["backbone"]["sha256"], backbone.weights_hash()
    if expected != found:
        raise CheckpointError(
            f"{source} was trained on backbone {header['backbone']['name']!r} with weights {expected[:12]}; "
            f"got {backbone.spec.name!r} with {found[:12]}; load the backbone that it names"
        )
    state = read_tensors(source, header)
    grafts = {str(name): config_from_dict(GRAFTS, config) for name, config in header["grafts"].items()}
    prompter, decoder = header["prompter"], header["decoder"]
    with torch.random.fork_rng(devices=[]):
        grafted = attach(
            backbone,
            grafts,
            prompter=None if prompter is None else config_from_dict(PROMPTERS, prompter),
            decoder=None if decoder is None else config_from_dict(DECODERS, decoder),
        )
    try:
        grafted.load_graft_state(state)
    except CheckpointError:
        grafted.detach()
        raise
    return grafted


def read_tensors(path: str | os.PathLike[str], header: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a bundle whose ``header`` was read.

    Raises:
        CheckpointError: damaged, or non-finite values.
    """
    source = bundle_path(path)
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(source)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{source} is damaged: {error}; copy it again") from error
    check_state(state, state)
    if tensors_hash(state) != header["tensors_sha256"]:
        raise CheckpointError(
            f"{source} is damaged: its tensors do not have the hash that its header states; copy it again"
        )
    return state


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def json_header(path: Path, key: str, *, what: str, remedy: str) -> dict[str, Any]:
    """The JSON that a safetensors file holds as metadata ``key``, without its tensors.

    Args:
        path: The file.
        key: Name of the metadata.
        what: Kind of file, for messages.
        remedy: What to do if there is no such file.

    Raises:
        CheckpointError: missing, damaged, or without ``key``.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no {what} file {path}; {remedy}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if key not in metadata:
            raise CheckpointError(f"{path} is a safetensors file but no samgraft {what}; expected metadata {key!r}")
        header: dict[str, Any] = json.loads(metadata[key])
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged or no {what} file: {error}; copy it again") from error
    return header


def _parse_header(path: Path) -> dict[str, Any]:
    header = json_header(path, _KEY, what="adapter", remedy="check the path")
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {header.get('format')!r}; this samgraft reads {FORMAT}; update samgraft"
        )
    needed = {"backbone", "grafts", "prompter", "decoder", "tensors_sha256", "meta"}
    if not needed <= set(header):
        raise CheckpointError(f"{path} lacks header fields {sorted(needed - set(header))}; the file is damaged")
    return header


def write_atomic(target: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    except OSError as error:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass
        raise OutputError(f"cannot write {target}: {error}; check folder, permissions and free space") from error


def samgraft_version() -> str:
    """Version of the installed package, or "0+unknown" in a clone that is not installed."""
    try:
        return version("samgraft")
    except PackageNotFoundError:
        return "0+unknown"
