"""Record a module as an ONNX file, compare the file with torch, and keep it only if the two agree."""

import contextlib
import hashlib
import importlib
import json
import logging
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samgraft.errors import OutputError, SamgraftError

OPSET = 18
"""Version of the ONNX operator set that is written."""
LIMIT = 1e-3
"""Largest difference to torch over the largest value of torch; files above it are not kept."""
EMBED_LIMIT = 2**30
"""Bytes of weights above which they go into a file of their own (protobuf ends at 2 GB)."""

Arrays = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A module, how its inputs and outputs are called, and inputs to compare on."""

    file: str
    module: nn.Module
    reference: Callable[..., tuple[Tensor, ...]]
    """What the file has to agree with."""
    dynamic: Mapping[str, Mapping[int, str]]
    """Input -> axis -> name of an axis of free length."""
    outputs: tuple[str, ...]
    trials: Sequence[Arrays]
    """Inputs by name; the first is also what is recorded, so its free axes are longer than 1."""


def write_graphs(graphs: Sequence[Graph], folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Record, compare and move into place; on failure nothing is left."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    temporary = folder / f".export.{secrets.token_hex(6)}.part"
    done = False
    try:
        temporary.mkdir(parents=True)
        meta = about | {"files": {graph.file: _record(graph, temporary) for graph in graphs}}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == "meta.json"):  # meta.json last
            os.replace(path, folder / path.name)
        done = True
        return meta
    except OSError as error:
        if isinstance(error, SamgraftError):
            raise
        raise OutputError(f"cannot write to {folder}: {error}; check folder, permissions and free space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in [] if done else made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _record(graph: Graph, folder: Path) -> dict[str, Any]:
    """Write one file and say what it holds and how far it is from torch."""
    path = folder / graph.file
    first = graph.trials[0]
    weights = sum(p.numel() * p.element_size() for p in graph.module.parameters())
    labels = {label for free in graph.dynamic.values() for label in free.values()}
    sizes = {label: torch.export.Dim(label) for label in labels}
    # in the order of the inputs: the exporter matches them by position
    axes = {name: {axis: sizes[label] for axis, label in graph.dynamic.get(name, {}).items()} for name in first}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.module.eval(),
                (),
                kwargs=dict(first),
                input_names=list(first),
                output_names=list(graph.outputs),
                dynamic_shapes=axes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            if program is None:
                raise RuntimeError("torch gave no program")
            program.save(path, external_data=weights > EMBED_LIMIT)
        differences = compare(path, graph)
    except OSError:
        raise
    except Exception as error:  # exporter and runtime raise kinds of their own, of several packages
        lines = str(error).strip().splitlines()
        raise OutputError(
            f"{graph.file} cannot be recorded and run with torch {torch.__version__}: "
            f"{lines[0] if lines else repr(error)}"
        ) from error
    worst = max(differences.values(), key=lambda value: math.inf if math.isnan(value) else value)
    if not worst <= LIMIT:
        raise OutputError(
            f"{graph.file} differs from torch by {worst:.2e} of the largest value; allowed is {LIMIT:.0e}; nothing was "
            "kept; try another version of onnxruntime or torch"
        )
    written = [one for one in (path, path.with_name(f"{path.name}.data")) if one.is_file()]
    return {
        "sha256": {one.name: _sha256(one) for one in written},
        "bytes": sum(one.stat().st_size for one in written),
        "inputs": {name: _shape(tensor, graph.dynamic.get(name, {})) for name, tensor in first.items()},
        "outputs": list(graph.outputs),
        "largest_relative_difference": worst,
        "compared_on": differences,
    }


def compare(path: Path, graph: Graph) -> dict[str, float]:
    """Largest difference of onnxruntime to torch, over torch's largest value, for every trial and output.

    Returns:
        "image (3, 3, 64, 64): neck" and the like -> difference; NaN where one of the two is not finite.
    """
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: dict[str, float] = {}
    for trial in graph.trials:
        with torch.no_grad():
            expected = graph.reference(*trial.values())
        given = session.run(list(graph.outputs), {name: tensor.numpy() for name, tensor in trial.items()})
        shapes = ", ".join(f"{name} {tuple(trial[name].shape)}" for name in graph.dynamic if graph.dynamic[name])
        for name, ours, theirs in zip(graph.outputs, expected, given, strict=True):
            found[f"{shapes}: {name}"] = _difference(torch.from_numpy(theirs), ours)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(theirs: Tensor, ours: Tensor) -> float:
    if theirs.shape != ours.shape:
        return float("inf")
    return float((theirs - ours).abs().max() / ours.abs().max().clamp_min(torch.finfo(ours.dtype).tiny))


def _shape(tensor: Tensor, free: Mapping[int, str]) -> list[int | str]:
    return [free.get(axis, length) for axis, length in enumerate(tensor.shape)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk about packages that nothing here uses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
