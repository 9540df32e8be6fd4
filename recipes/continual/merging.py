"""Adapter files made one file (``samgraft.adapters.merging``), with a header that says so.

    merge_adapters(["dark.graft", "bright.graft"], "both.graft", weights=[0.5, 0.5], how="svd")

Only adapters of one backbone, with the same parts and options, go together. What the header says about inputs and
classes is taken from all if they agree, else from the one that ``like`` names. Metrics, calibration and features of the
training images belong to the adapters that were merged and are left out; ``samgraft validate`` measures the new one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.bundle import BundleMeta, read_header, read_meta, save_bundle
from samgraft.adapters.config import config_from_dict
from samgraft.adapters.decoders import DECODERS
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import GRAFTS, GraftConfig
from samgraft.adapters.merging import How, merge_states, require_alike
from samgraft.adapters.prompts import PROMPTERS
from samgraft.errors import CheckpointError, ConfigError

SHARED = ("classes", "task", "modality", "intensity", "input_size", "input")
"""What the header of a merged adapter says about its use; ``like`` decides where adapters disagree."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What came out."""

    adapter: Path
    how: How
    parameters: int
    """Of the merged adapter."""
    before: tuple[int, ...]
    """Of those it is made of."""
    discarded: Mapping[str, float]
    """"svd": graft -> share of its change that did not fit into the rank."""

    def text(self) -> str:
        """One or two lines."""
        sizes = ", ".join(f"{count:,}" for count in self.before)
        lines = [f"{self.how}: {self.parameters:,} parameters, of {sizes}"]
        lines += [
            f"{name}: {share:.1%} of the change did not fit into the rank" for name, share in self.discarded.items()
        ]
        return "; ".join(lines)


def merge_adapters(
    adapters: Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    how: How = "average",
    rank: int | None = None,
    like: str | PathLike[str] | None = None,
    backbone: str | PathLike[str] | Backbone | None = None,
) -> MergeReport:
    """Merge adapter files.

    Args:
        adapters: Two or more files.
        output: File to write; replaced if it is there.
        weights: One for each; None shares 1 evenly. They sum to 1, or with "exact" and "svd" to anything above 0.
        how: "average" of tensors; "exact" sum of changes, with ranks stacked; "svd", the same cut to ``rank``.
        rank: "svd": None takes the largest of the adapters'.
        like: Which of ``adapters`` the header's inputs and classes are taken from, where they differ.
        backbone: Name, folder, file or backbone; None loads the one that the files name.

    Raises:
        CheckpointError: a file is damaged, of another backbone, or has other tensors.
        ConfigError: other parts or options, other classes or inputs without ``like``, weights that do not fit, or a
            graft that has no exact form.
        OutputError: the file cannot be written.
    """
    paths = [Path(one) for one in adapters]
    if weights is None:
        weights = [1 / max(len(paths), 1)] * len(paths)
    if len(paths) < 2 or len(weights) != len(paths):
        raise ConfigError(f"{len(paths)} adapters and {len(weights)} weights; expected two or more, one weight each")
    headers = [read_header(path) for path in paths]
    _require_backbone(paths, headers)
    configs = [_grafts(header) for header in headers]
    require_alike(configs, how=how)
    _require_heads(paths, headers)
    meta = _meta(paths, weights, how, None if like is None else Path(like))
    states = [safetensors.torch.load_file(path) for path in paths]
    network = _network(headers[0], backbone)
    identity = _identity(network, configs[0]) if how != "average" else None
    merged = merge_states(configs, states, weights, how=how, rank=rank, identity=identity)
    grafted = _attached(network, merged.configs, headers[0])
    try:
        grafted.load_graft_state(merged.state)
        save_bundle(output, grafted, meta=meta)
    finally:
        grafted.detach()
    return MergeReport(
        adapter=Path(output),
        how=how,
        parameters=sum(value.numel() for value in merged.state.values()),
        before=tuple(sum(value.numel() for value in state.values()) for state in states),
        discarded=merged.discarded,
    )


def _require_backbone(paths: Sequence[Path], headers: Sequence[Mapping[str, Any]]) -> None:
    first = headers[0]["backbone"]
    for path, header in zip(paths, headers, strict=True):
        own = header["backbone"]
        if own["sha256"] != first["sha256"]:
            raise CheckpointError(
                f"{path} belongs to backbone {own['name']!r} with weights {own['sha256'][:12]}, {paths[0]} to "
                f"{first['name']!r} with {first['sha256'][:12]}; only adapters of one backbone can be merged"
            )


def _require_heads(paths: Sequence[Path], headers: Sequence[Mapping[str, Any]]) -> None:
    for part in ("prompter", "decoder"):
        for path, header in zip(paths, headers, strict=True):
            mine, theirs = headers[0][part], header[part]
            if mine != theirs:
                raise ConfigError(
                    f"{path} has {part} {theirs!r}, {paths[0]} {mine!r}; only adapters with the same head and as many "
                    "classes can be merged; use a router for others"
                )


def _grafts(header: Mapping[str, Any]) -> dict[str, GraftConfig]:
    return {str(name): config_from_dict(GRAFTS, config) for name, config in header["grafts"].items()}


def _meta(paths: Sequence[Path], weights: Sequence[float], how: How, like: Path | None) -> BundleMeta:
    """The header's account of use and origin."""
    metas = [read_meta(path) for path in paths]
    if like is not None and like not in paths:
        raise ConfigError(f"like is {like}; expected one of {', '.join(map(str, paths))}")
    chosen = metas[0 if like is None else paths.index(like)]
    for path, meta in zip(paths, metas, strict=True):
        mine, theirs = _shared(metas[0]), _shared(meta)
        differ = [name for name in SHARED if mine[name] != theirs[name]]
        if differ and like is None:
            name = differ[0]
            raise ConfigError(
                f"{path} has {name} {theirs[name]!r}, {paths[0]} {mine[name]!r}; say whose the merged adapter takes: "
                "like=FILE (--like FILE)"
            )
    parts = [
        {"adapter": path.name, "sha256": str(read_header(path)["tensors_sha256"]), "weight": float(weight)}
        for path, weight in zip(paths, weights, strict=True)
    ]
    extra = {"input": chosen.extra["input"]} if "input" in chosen.extra else {}
    return replace(chosen, training={}, metrics={}, extra={**extra, "merged": {"how": how, "of": parts}})


def _shared(meta: BundleMeta) -> dict[str, Any]:
    return asdict(meta) | {"input": meta.extra.get("input")}


def _network(header: Mapping[str, Any], backbone: str | PathLike[str] | Backbone | None) -> Backbone:
    chosen = header["backbone"]["name"] if backbone is None else backbone
    network = chosen if isinstance(chosen, Backbone) else load_backbone(chosen)
    if network.weights_hash() != header["backbone"]["sha256"]:
        raise CheckpointError(
            f"the adapters belong to backbone {header['backbone']['name']!r} with weights "
            f"{header['backbone']['sha256'][:12]}; got {network.spec.name!r} with {network.weights_hash()[:12]}"
        )
    return network


def _identity(network: Backbone, configs: Mapping[str, GraftConfig]) -> dict[str, torch.Tensor]:
    """Tensors with which the grafts change nothing."""
    still = attach(network, {name: replace(config, init="identity") for name, config in configs.items()})
    try:
        return {key: value.detach().clone() for key, value in still.graft_state().items()}
    finally:
        still.detach()


def _attached(network: Backbone, configs: Mapping[str, GraftConfig], header: Mapping[str, Any]) -> Grafted:
    prompter, decoder = header["prompter"], header["decoder"]
    with torch.random.fork_rng(devices=[]):
        return attach(
            network,
            configs,
            prompter=None if prompter is None else config_from_dict(PROMPTERS, prompter),
            decoder=None if decoder is None else config_from_dict(DECODERS, decoder),
        )
