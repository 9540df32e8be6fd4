"""An adapter fitted to one scene for as long as a block of code lasts, and exactly as it was after it.

    with adapted_to(scene, grafted, EntropyConfig()) as verdict:
        result = samgraft.segment(scene, adapter=grafted)
    # the same tensors, grafts and modules as before: the next scene does not know of this one

The whole scene is fitted once, on inputs spread over it, and then every window of it sees the same fixed network, so a
pixel has one value whatever tile it is computed in.
"""

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor

from samgraft.adapters.bundle import BundleMeta
from samgraft.adapters.extending import extended
from samgraft.adapters.graft import Grafted
from samgraft.adapters.grafts import GraftConfig, NeckAffineConfig
from samgraft.domains.scene import Scene
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.engine.recorded import Recorded, recorded
from samgraft.recipes.engine.run import adapter_meta
from samgraft.recipes.features import FeatureMoments
from samgraft.recipes.sampled import scene_inputs
from samgraft.recipes.test_time import entropy
from samgraft.recipes.test_time.answers import Verdict, require_maps
from samgraft.recipes.test_time.methods import EntropyConfig, SceneMethod, StatisticsConfig
from samgraft.recipes.test_time.statistics import align_statistics


@contextlib.contextmanager
def adapted_to(scene: Scene, grafted: Grafted, method: SceneMethod) -> Iterator[Verdict]:
    """Fit ``grafted`` to ``scene``; after the block everything is bit by bit as before it.

    Args:
        scene: What will be segmented; read at a few places.
        grafted: From ``samgraft.load_adapter``, or with a header by ``samgraft.with_meta``.
        method: What is done.

    Yields:
        The guard's verdict. Where it is not kept, ``grafted`` is inside the block what it was before.

    Raises:
        ConfigError: the adapter gives no class maps, has nothing that the method could move, or has no header.
        CheckpointError: "statistics" and the header has none of training.
        InputError: the scene cannot be seen by the adapter.
    """
    meta = adapter_meta(grafted)
    said = recorded(grafted, meta)
    require_maps(said.representation)
    moments = _moments(meta, grafted) if isinstance(method, StatisticsConfig) else None
    inputs = scene_inputs(scene, said, method.inputs)
    mode = grafted.training
    grafted.eval()
    try:
        with extended(grafted, _added(method)):
            verdict = _fitted(grafted, said, inputs, method, moments)
            if verdict.kept:
                yield verdict
        if not verdict.kept:
            yield verdict
    finally:
        grafted.train(mode)


def describe(method: SceneMethod, verdict: Verdict) -> dict[str, str]:
    """For the meta of a result: what was done to the adapter, and whether that was kept."""
    how = method.method if verdict.kept else f"{method.method}, not kept: the adapter was used as it is"
    return {"test_time": f"{how}; {verdict.reason}"}


def _added(method: SceneMethod) -> Mapping[str, GraftConfig]:
    return entropy.added(method) if isinstance(method, EntropyConfig) else {entropy.EXTRA: NeckAffineConfig()}


def _moments(meta: BundleMeta, grafted: Grafted) -> FeatureMoments:
    found = FeatureMoments.from_meta(meta)
    if found.backbone != grafted.base_hash:
        raise CheckpointError(
            f"the adapter's header has features of another backbone ({found.backbone[:12]}; this is "
            f"{grafted.base_hash[:12]}); write them again with samgraft route --learn"
        )
    return found


def _fitted(
    grafted: Grafted, said: Recorded, inputs: Tensor, method: SceneMethod, moments: FeatureMoments | None
) -> Verdict:
    representation = require_maps(said.representation)
    if isinstance(method, EntropyConfig):
        return entropy.lower_entropy(grafted, representation, inputs, method)
    if isinstance(method, StatisticsConfig) and moments is not None:
        return align_statistics(grafted, representation, inputs, moments, method)
    raise ConfigError(f"test-time method {method.method!r} has no implementation; choose entropy or statistics")
