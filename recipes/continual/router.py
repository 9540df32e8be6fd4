"""Several domains on one frozen backbone: one adapter each, and for every image the one of the nearest domain.

    domains = Domains.load(["ct.graft", "mr.graft"])
    route = domains.route("case.nii.gz")            # route.name, or None where it is far from all of them
    result = domains.segment("case.nii.gz")

A domain that is added changes nothing of those that are there: the backbone is shared and frozen, and adapters are in
it one at a time (``samgraft.adapters.AdapterShelf``). That is all there is to not forgetting; what has to be right is
the choice. An image is looked at as each adapter would, encoded by the frozen backbone, and compared with what the
adapters' headers remember of their training images (``samgraft.recipes.features``). The distance is told in
thresholds: 1 is as far as an image may be and still belong; the nearest of those up to 1 is taken, and none if there is
none.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.bundle import BundleMeta, load_bundle, read_header, read_meta
from samgraft.adapters.shelf import AdapterShelf
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import CheckpointError, ConfigError, InputError, NoMatchError
from samgraft.recipes.engine.recorded import Recorded, recorded
from samgraft.recipes.engine.run import segment, with_meta
from samgraft.recipes.features import FeatureMoments, pooled
from samgraft.recipes.sampled import scene_inputs

INPUTS = 16
"""Network inputs of an image that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where an image belongs."""

    name: str | None
    """The domain; None if it is far from all."""
    distances: Mapping[str, float]
    """Domain -> distance in its own thresholds: up to 1 it may belong there; infinite if it cannot be looked at."""

    def text(self) -> str:
        """One line."""
        told = ", ".join(
            f"{name} {value:.2f}" for name, value in sorted(self.distances.items(), key=lambda one: one[1])
        )
        return f"{self.name or 'unknown'} (distance in thresholds: {told})"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Domain:
    meta: BundleMeta
    said: Recorded
    moments: FeatureMoments | None


class Domains:
    """Adapters by name on one backbone, and the router.

    Args:
        backbone: Carries nothing.

    Attributes:
        shelf: The adapters.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Start empty.

        Raises:
            ConfigError: ``backbone`` carries grafts.
        """
        self.shelf = AdapterShelf(backbone)
        self._domains: dict[str, _Domain] = {}

    @classmethod
    def load(
        cls,
        adapters: Iterable[str | PathLike[str]] | Mapping[str, str | PathLike[str]],
        backbone: str | PathLike[str] | Backbone | None = None,
    ) -> "Domains":
        """Load adapter files of one backbone.

        Args:
            adapters: Files, called by their stems, or names mapped to files.
            backbone: Name, folder, file or backbone; None takes the one that the first file names.

        Raises:
            ConfigError: no file, or two of one name.
            CheckpointError: a file is damaged, or belongs to another backbone than the first.
        """
        named = named_files(adapters)
        first = next(iter(named.values()))
        if backbone is None:
            backbone = str(read_header(first)["backbone"]["name"])
        found = cls(backbone if isinstance(backbone, Backbone) else load_backbone(backbone))
        for name, path in named.items():
            found.add(name, path)
        return found

    def names(self) -> tuple[str, ...]:
        """Domains in the order in which they were added."""
        return self.shelf.names()

    def add(self, name: str, adapter: str | PathLike[str]) -> None:
        """Add a domain.

        Raises:
            ConfigError: the name is taken.
            CheckpointError: the file is damaged, or belongs to another backbone.
        """
        meta = read_meta(adapter)
        grafted = with_meta(load_bundle(adapter, self.shelf.backbone), meta)
        try:
            said = recorded(grafted, meta)
            moments = FeatureMoments.from_meta(meta, str(adapter)) if "features" in meta.extra else None
            if moments is not None and moments.backbone != grafted.base_hash:
                raise CheckpointError(
                    f"{adapter} has features of another backbone; write them again with samgraft route --learn"
                )
            self.shelf.add(name, grafted)
        except Exception:
            grafted.detach()
            raise
        self._domains[name] = _Domain(meta=meta, said=said, moments=moments)

    def route(self, scene: Scene | str | PathLike[str]) -> Route:
        """The domain of an image.

        Raises:
            CheckpointError: an adapter's header does not remember its training images.
            InputError: the file cannot be read, or no adapter can look at it.
        """
        source = scene if isinstance(scene, Scene) else open_scene(scene)
        features: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
        found, why = dict[str, float](), ""
        for name, domain in self._domains.items():
            moments = domain.moments or FeatureMoments.from_meta(domain.meta, f"adapter {name!r}")
            key = repr((domain.said.recipe, domain.said.modality, domain.said.intensity))
            try:
                if key not in features:
                    inputs = scene_inputs(source, domain.said, INPUTS, slabs=False)
                    features[key] = pooled(self.shelf.backbone, inputs).mean(axis=0)
            except InputError as error:
                found[name], why = math.inf, str(error)
                continue
            found[name] = moments.distance(features[key]) / moments.threshold
        if not found or all(math.isinf(value) for value in found.values()):
            raise InputError(f"{source.path.name}: none of {', '.join(found) or 'no adapters'} can look at it: {why}")
        return nearest(found)

    def segment(
        self, scene: Scene | str | PathLike[str], *, name: str | None = None, **options: Any
    ) -> tuple[Segmentation, Route | None]:
        """Segment by the adapter of the image's domain.

        Args:
            scene: As for ``samgraft.segment``.
            name: The domain, where it is told; None asks :meth:`route`.
            options: Others of ``samgraft.segment``.

        Returns:
            The result, whose meta names the domain, and the route; None where the domain was told.

        Raises:
            InputError: the image is far from all domains.
            NoMatchError: no such domain.
        """
        source = scene if isinstance(scene, Scene) else open_scene(scene)
        route = None if name is not None else self.route(source)
        chosen = name if route is None else known(route, source)
        if chosen not in self._domains:
            raise NoMatchError(f"there is no domain {chosen!r}; known: {', '.join(self.names()) or 'none'}")
        with self.shelf.using(str(chosen)) as grafted:
            result = segment(source, adapter=grafted, **options)
        told = {"domain": str(chosen), "route": "told" if route is None else route.text()}
        return result.about(meta=told), route


def nearest(distances: Mapping[str, float]) -> Route:
    """The route of distances in thresholds: the least of those up to 1; the first of equals."""
    name = min(distances, key=lambda one: distances[one], default=None)
    within = name is not None and distances[name] <= 1
    return Route(name=name if within else None, distances=dict(distances))


def known(route: Route, scene: Scene) -> str:
    """The domain of a route.

    Raises:
        InputError: it is far from all.
    """
    if route.name is None:
        raise InputError(
            f"{scene.path.name} is unlike the training images of every adapter: {route.text()}; name one of them if "
            "you know better (--route NAME), or train one on such images"
        )
    return route.name


def named_files(adapters: Iterable[str | PathLike[str]] | Mapping[str, str | PathLike[str]]) -> dict[str, Path]:
    """Files by name: as they are mapped, or by their stems.

    Raises:
        ConfigError: no file, or two of one name.
    """
    if isinstance(adapters, Mapping):
        named = {str(name): Path(path) for name, path in adapters.items()}
    else:
        named = {}
        for path in map(Path, adapters):
            twin = named.setdefault(path.stem, path)
            if twin is not path:
                raise ConfigError(f"{twin} and {path} would both be called {path.stem!r}; rename one of the files")
    if not named:
        raise ConfigError("no adapter given; name at least one file")
    return named
