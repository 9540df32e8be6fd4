"""Begin a run where another adapter ended: its grafts and head, copied into a network of the same make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samgraft.adapters.bundle import read_header, read_meta, read_tensors
from samgraft.adapters.config import MethodConfig
from samgraft.adapters.graft import Grafted
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.boxed import KEY as BOX_IOU
from samgraft.recipes.config import FitConfig
from samgraft.recipes.tones import PLAIN

TRAINING_ONLY = frozenset({"init", "dropout", "lr_factor"})
"""Options that change how a method is trained and not what its tensors mean."""


def start_from(path: Path | str, grafted: Grafted, class_names: Sequence[str], *, tone: str = PLAIN) -> None:
    """Copy the tensors of an adapter file into ``grafted``; nothing is copied unless all of it fits.

    Args:
        path: The source adapter. It is read only.
        grafted: The network of the new run, with everything attached.
        class_names: Classes of the new run, in order of label value.
        tone: ``data.tone`` of the new run.

    Raises:
        CheckpointError: a missing or damaged file, or one of another backbone; both hashes are named.
        ConfigError: other grafts, another head, an option with another value, or classes in another order, by name;
            images in another tone than the adapter saw.
    """
    source = Path(path)
    header = read_header(source)
    expected, found = header["backbone"]["sha256"], grafted.base_hash
    if expected != found:
        raise CheckpointError(
            f"train.start_from: {source} was trained on backbone {header['backbone']['name']!r} with weights "
            f"{expected[:12]}; this run has {grafted.spec.name!r} with {found[:12]}; set task.backbone to the former"
        )
    _require_grafts(source, header["grafts"], grafted.configs)
    for part, own in (("prompter", grafted.prompter_config), ("decoder", grafted.decoder_config)):
        _require_method(source, f"the {part}", header[part], own)
    _require_order(source, class_names)
    seen = (read_meta(source).extra.get("input") or {}).get("tone", PLAIN)
    if seen != tone:
        raise ConfigError(
            f"train.start_from: {source} sees images in the tone {seen!r}, and this run in {tone!r}; set data.tone to "
            f"{seen!r}"
        )
    grafted.load_graft_state(read_tensors(source, header))


def settle_weak(config: FitConfig, tell: Callable[[str], None] | None = None) -> FitConfig:
    """The settings of a run with weak labels, where the adapter it begins with knows what prompts are worth.

    Args:
        config: As it was given.
        tell: Takes a line if anything changes.

    Returns:
        The same; or without prompts and with the adapter's own masks from the first step on, where the frozen backbone
        does not draw that structure (``weak.least_box_iou``).

    Raises:
        CheckpointError: ``train.start_from`` is no adapter.
    """
    start, weak = config.train.start_from, config.weak
    if start is None or config.data.supervision == "masks" or not weak.prompts:
        return config
    known = read_meta(start).training.get(BOX_IOU)
    if not isinstance(known, int | float) or known >= weak.least_box_iou:
        return config
    if tell is not None:
        tell(
            f"{start}: the frozen backbone draws true objects from their boxes with an IoU of {known:.2f}, below "
            f"weak.least_box_iou {weak.least_box_iou:g}; it is not asked, and the adapter's own masks teach"
        )
    return replace(config, weak=replace(weak, prompts=False, first_round=0.0))


def _require_grafts(source: Path, stored: Mapping[str, Mapping[str, Any]], own: Mapping[str, MethodConfig]) -> None:
    if set(stored) != set(own):
        raise ConfigError(
            f"train.start_from: {source} has the grafts {', '.join(sorted(stored)) or 'none'}; this run has "
            f"{', '.join(sorted(own)) or 'none'}; give task.grafts as the adapter has them"
        )
    for name, config in own.items():
        _require_method(source, f"graft {name!r}", stored[name], config)


def _require_method(source: Path, what: str, stored: Mapping[str, Any] | None, own: MethodConfig | None) -> None:
    """Both are absent, or the same method with the same options."""
    theirs = {} if stored is None else dict(stored)
    ours = {} if own is None else own.to_dict()
    if theirs.get("method") != ours.get("method"):
        raise ConfigError(
            f"train.start_from: {what} of {source} is {theirs.get('method', 'absent')!r}; of this run "
            f"{ours.get('method', 'absent')!r}; set task.grafts and task.head as the adapter has them"
        )
    for option in sorted({*theirs, *ours} - TRAINING_ONLY):
        if theirs.get(option) != ours.get(option):
            raise ConfigError(
                f"train.start_from: {what} of {source} has {option} = {theirs.get(option)!r}; of this run "
                f"{ours.get(option)!r}; give it the same value"
            )


def _require_order(source: Path, class_names: Sequence[str]) -> None:
    """The same names in another order would teach one class under the name of another."""
    classes = read_meta(source).classes
    before = [classes[number] for number in sorted(classes)]
    if before != list(class_names) and sorted(before) == sorted(class_names):
        raise ConfigError(
            f"train.start_from: {source} has the classes {before} and this run the same in another order, "
            f"{list(class_names)}; give the data set the adapter's order"
        )
