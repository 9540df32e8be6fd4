"""What an adapter's header says about its inputs, ready for use on a new scene."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from samgraft.adapters.bundle import BundleMeta
from samgraft.adapters.config import MethodConfig
from samgraft.adapters.graft import Grafted
from samgraft.domains.medical.intensity import IntensityRule, fit_intensity, require_hu
from samgraft.domains.scene import Scene
from samgraft.domains.shift.alignment import Alignment
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.alignment import in_tone
from samgraft.recipes.band_names import bands_by_name
from samgraft.recipes.config import Kind
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.look import Look, look_as_recorded, look_at, look_within
from samgraft.recipes.representations import Maps, Representation, head_of, represent
from samgraft.recipes.tones import PLAIN


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Everything that decides a result besides weights and pixels."""

    recipe: InputRecipe
    """From files to squares."""
    classes: Mapping[int, str]
    """Label value -> name."""
    kind: Kind = "semantic"
    """Of the task."""
    head: MethodConfig | None = None
    """What gives the answers; with ``kind`` it decides what the channels of the network mean."""
    modality: str = ""
    """CT, MR, ...; empty if it was not known."""
    intensity: Mapping[str, Any] | None = None
    """Scale of training, or None to fit one on every scene."""
    about: Mapping[str, str] = field(default_factory=dict)
    """For the result's meta."""
    alignment: Alignment | None = None
    """What moves a scene towards the images of training, fitted on it (``engine.aligned``); None for nothing."""
    views: int = 1
    """How many views of a window are averaged (``engine.turned``)."""
    scales: tuple[float, ...] = (1.0,)
    """How many times as large as in training a picture is looked at (``engine.scales``)."""

    @property
    def size(self) -> int:
        """Side of the network input."""
        return self.recipe.size

    @property
    def window(self) -> int | None:
        """Native side of windows, or None for whole planes."""
        return self.recipe.window

    @property
    def overlap(self) -> float:
        """Overlap of windows as a share of their side."""
        return self.recipe.overlap

    @property
    def representation(self) -> Representation:
        """What the channels of the network mean."""
        return represent(self.kind, self.head, classes=len(self.classes))

    @property
    def maps(self) -> Maps:
        """The same, where it has maps that are blended.

        Raises:
            CheckpointError: it has none.
        """
        found = self.representation
        if not isinstance(found, Maps):
            raise CheckpointError(f"the adapter gives {type(found).__name__}, which has no maps to be blended")
        return found

    def scale(self, shape: tuple[int, int]) -> float:
        """Native pixels per network pixel, of a plane of ``shape``."""
        side = max(shape) if self.window is None else min(self.window, *shape)
        return side / self.size

    @property
    def rule(self) -> IntensityRule | None:
        """How the scale is measured on every image; None where it is fixed, or the header says nothing.

        Raises:
            CheckpointError: the header has a rule that this version cannot read.
        """
        scale = self.intensity or {}
        if scale.get("kind") not in ("percentile", "zscore"):
            return None
        try:
            return IntensityRule.from_dict(scale)
        except ConfigError as error:
            raise CheckpointError(f"the adapter's header: {error}") from error

    def look(self, scene: Scene) -> Look:
        """Channels and scale for ``scene``, chosen as for a training case, and the alignment.

        A recorded window of fixed values (CT, or set by hand) is used; percentiles and standard deviations are measured
        on every scene, by the recorded rule.

        Raises:
            InputError: the scene has not the channels that the adapter was trained on, or cannot hold Hounsfield units
                where it was trained on CT.
            CheckpointError: the recorded window is not one.
        """
        axis = self.recipe.slice_axis if scene.grid.ndim == 3 else None
        look = in_tone(self.recipe.tone, scene, self._scale(scene), axis=axis, window=self.window)
        return look if self.alignment is None else replace(look, alignment=self.alignment)

    def _scale(self, scene: Scene) -> Look:
        scale = self.intensity or {}
        kind = scale.get("kind")
        if scene.kind == "volume" and (kind == "ct_window" or (kind is None and self.modality.upper() == "CT")):
            require_hu(scene)
        if kind == "range" or (kind == "ct_window" and scene.kind == "volume"):
            lower, upper = scale.get("lower"), scale.get("upper")
            if not isinstance(lower, int | float) or not isinstance(upper, int | float):
                raise CheckpointError(
                    f"the adapter's header has intensity {dict(scale)!r}; expected numbers lower and upper"
                )
            return look_within(scene, self.bands(scene), lower=float(lower), upper=float(upper))
        rule = self.rule
        if (self.modality or rule is not None) and scene.kind == "volume":
            fitted = fit_intensity(scene, self.modality, rule=rule)
            return look_within(scene, self.bands(scene), lower=fitted.lower, upper=fitted.upper)
        if kind == "stretch" and scene.kind == "raster":
            return look_as_recorded(scene, self.bands(scene), scale)
        return look_at(scene, self.bands(scene))

    def bands(self, scene: Scene) -> tuple[int, ...] | None:
        """Channels of ``scene`` that show what those of training showed; None leaves the choice to the file.

        Raises:
            InputError: a raster whose bands have names, and not those of training.
        """
        return bands_by_name(scene, self.recipe.bands, self.recipe.band_names)

    def describe(self) -> dict[str, str]:
        """For the result's meta."""
        return {"mode": "automatic", **self.about}


def recorded(grafted: Grafted, meta: BundleMeta) -> Recorded:
    """Read a header.

    Raises:
        CheckpointError: the header does not say how images become network inputs, or what the classes are.
    """
    if not meta.classes:
        raise CheckpointError(
            "the adapter's header names no classes; train it with samgraft fit, or give meta=BundleMeta(...)"
        )
    if meta.task not in ("semantic", "instance"):
        raise CheckpointError(
            f"the adapter's task is {meta.task!r}; expected 'semantic' or 'instance'; update samgraft"
        )
    recipe = InputRecipe.from_meta(meta)
    tone = {} if recipe.tone == PLAIN else {"tone": recipe.tone}
    return Recorded(
        recipe=recipe,
        classes=meta.classes,
        kind="instance" if meta.task == "instance" else "semantic",
        head=head_of(grafted),
        modality=meta.modality,
        intensity=meta.intensity,
        about={"backbone": grafted.backbone.spec.name, **tone},
    )
