"""Options of ``samgraft segment`` that fit the adapter to the scene, and what is done with them."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import PlainParser, say

if TYPE_CHECKING:
    from samgraft.domains.scene import Scene
    from samgraft.domains.segmentation import Segmentation
    from samgraft.recipes.test_time.methods import SceneMethod

KINDS = ("entropy", "statistics")
_ENTROPY = {"test_time_steps": "steps", "test_time_lr": "lr", "test_time_moved": "moved"}
_OTHERS = ("box", "point", "line", "prompts", "reference", "everything", "quantize")


def add_test_time(parser: PlainParser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "at test time",
        "The adapter is fitted to this scene without labels, on inputs spread over it, and reset after it; a guard "
        "throws away what does not make it more certain, or makes classes vanish (docs/test_time.md).",
    )
    group.add_argument("--test-time", default=None, choices=KINDS, help="what is done to the adapter")
    group.add_argument("--test-time-steps", type=int, default=None, metavar="N", help="entropy: steps; 10")
    group.add_argument("--test-time-lr", type=float, default=None, metavar="RATE", help="entropy: learning rate; 0.01")
    group.add_argument(
        "--test-time-moved",
        default=None,
        choices=("neck", "norms", "adapter"),
        help="entropy: what is changed; neck (the encoder runs once)",
    )
    group.add_argument(
        "--test-time-inputs", type=int, default=None, metavar="N", help="network inputs it is fitted on; 16"
    )


def test_time_method(values: argparse.Namespace) -> "SceneMethod | None":
    """What the call asks for, or None.

    Raises:
        ConfigError: options without ``--test-time``, of the other method, or together with prompts.
    """
    given = {name: value for name, value in vars(values).items() if name.startswith("test_time_") and value is not None}
    if values.test_time is None:
        if given:
            raise ConfigError(f"--{next(iter(given)).replace('_', '-')}: add --test-time entropy or statistics")
        return None
    other = [name for name in _OTHERS if getattr(values, name)]
    if other or values.adapter is None:
        why = f"not with --{other[0]}" if other else "and none is given"
        raise ConfigError(f"--test-time fits an adapter that segments by itself, {why}; use it with --adapter alone")

    from samgraft.recipes.test_time.methods import EntropyConfig, StatisticsConfig

    common = {"inputs": values.test_time_inputs} if values.test_time_inputs is not None else {}
    own: dict[str, Any] = {_ENTROPY[name]: value for name, value in given.items() if name in _ENTROPY}
    if values.test_time == "entropy":
        return EntropyConfig(**common, **own)
    if own:
        raise ConfigError("--test-time-steps, -lr and -moved belong to entropy; statistics are measured once")
    return StatisticsConfig(**common)


def test_time_segment(method: "SceneMethod | None") -> "Callable[..., Segmentation]":
    """``samgraft.segment``, or the same with an adapter that is fitted first, and that says so."""
    from samgraft.recipes.api import segment

    return segment if method is None else partial(_segment, method)


def test_time_adapter(values: argparse.Namespace, scene: "Scene | None", reading: dict[str, Any]) -> str | None:
    """The adapter file for a run over tiles: fitted to the whole raster and written beside the first output."""
    from samgraft.domains.opening import open_scene
    from samgraft.recipes.test_time.segmenting import write_adapted

    method = test_time_method(values)
    if method is None:
        given: str | None = values.adapter
        return given
    target = Path(f"{values.output[0]}.test_time.graft")
    whole = open_scene(values.input, **reading) if scene is None else scene
    say(f"fitting the adapter to {whole.path.name}: {method.method}, on {method.inputs} inputs at most")
    path, verdict = write_adapted(whole, values.adapter, target, method=method, backbone=values.backbone)
    _tell(method, verdict)
    if path == target:
        say(f"wrote {path}, the adapter that every tile is segmented with")
    return str(path)


def _segment(method: "SceneMethod", scene: "Scene", **options: Any) -> "Segmentation":
    from samgraft.recipes.test_time.segmenting import segment_adapted

    say(f"fitting the adapter to {scene.path.name}: {method.method}, on {method.inputs} inputs at most")
    result, verdict = segment_adapted(scene, method=method, **options)
    _tell(method, verdict)
    return result


def _tell(method: "SceneMethod", verdict: Any) -> None:
    from samgraft.recipes.test_time.scene import describe

    before, after = verdict.before.foreground, verdict.after.foreground
    say(f"test time: {describe(method, verdict)['test_time']}; foreground {before:.2%}, then {after:.2%} of the inputs")
