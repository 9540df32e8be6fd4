"""Segment a scene with an adapter that was fitted to it: in memory, or as a file that a run over tiles can use."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import read_header, read_meta, replace_meta, save_bundle
from samgraft.adapters.graft import Grafted
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import Segmentation
from samgraft.recipes.engine.run import adapter_meta, load_adapter, output_paths, segment
from samgraft.recipes.test_time.answers import Verdict
from samgraft.recipes.test_time.methods import SceneMethod
from samgraft.recipes.test_time.scene import adapted_to, describe


def segment_adapted(
    scene: Scene | str | PathLike[str],
    *,
    adapter: str | PathLike[str] | Grafted,
    method: SceneMethod,
    backbone: str | PathLike[str] | Backbone | None = None,
    output: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    **options: Any,
) -> tuple[Segmentation, Verdict]:
    """``samgraft.segment`` by an adapter that is fitted to the scene first and reset after it.

    Args:
        scene: A scene of ``samgraft.open``, or a path.
        adapter: As for ``samgraft.segment``.
        method: ``EntropyConfig`` or ``StatisticsConfig``.
        backbone: As for ``samgraft.segment``.
        output: As for ``samgraft.segment``.
        options: Others of ``samgraft.segment`` for an adapter without prompts.

    Returns:
        Labels on the grid of the input, whose meta says what was done, and the guard's verdict.

    Raises:
        SamgraftError: as ``samgraft.segment`` and :func:`adapted_to`.
    """
    source = scene if isinstance(scene, Scene) else open_scene(scene)
    targets = output_paths(output, source)
    grafted = adapter if isinstance(adapter, Grafted) else load_adapter(adapter, backbone)
    try:
        with adapted_to(source, grafted, method) as verdict:
            result = segment(source, adapter=grafted, **options)
    finally:
        if grafted is not adapter:
            grafted.detach()
    facts = describe(method, verdict)
    if not isinstance(adapter, Grafted):
        facts |= {"adapter": Path(adapter).name, "adapter_sha256": str(read_header(adapter)["tensors_sha256"])}
    result = result.about(meta=facts)
    for path in targets:
        result.save(path)
    return result, verdict


def write_adapted(
    scene: Scene,
    adapter: str | PathLike[str],
    target: str | PathLike[str],
    *,
    method: SceneMethod,
    backbone: str | PathLike[str] | Backbone | None = None,
) -> tuple[Path, Verdict]:
    """An adapter file fitted to one raster, for a run over its tiles in any number of processes.

    It is a bundle like any other, and says in ``meta.extra["test_time"]`` what it was fitted to.

    Args:
        scene: The whole raster.
        adapter: A file.
        target: File to write; replaced if it is there.
        method: What is done.
        backbone: As for ``samgraft.segment``.

    Returns:
        ``target``, or ``adapter`` itself where the guard did not keep the result (nothing is written then); and the
        verdict.
    """
    grafted = load_adapter(adapter, backbone)
    try:
        with adapted_to(scene, grafted, method) as verdict:
            if verdict.kept:
                save_bundle(target, grafted, meta=adapter_meta(grafted))
    finally:
        grafted.detach()
    if not verdict.kept:
        return Path(adapter), verdict
    meta = read_meta(target)
    meta.extra["test_time"] = {
        "adapter": Path(adapter).name,
        "adapter_sha256": str(read_header(adapter)["tensors_sha256"]),
        "scene": scene.path.name,
        "method": method.to_dict(),
        "said": describe(method, verdict)["test_time"],
    }
    replace_meta(target, meta)
    return Path(target), verdict
