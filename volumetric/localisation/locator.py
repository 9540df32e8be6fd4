"""From a few annotated volumes and a position network to 3D boxes in new volumes.

A structure is described by six landmarks: the middles of its first and last layer along D, H and W. There are two ways
to find them in a new volume:

    votes      Of every annotated volume the position code and patches of features around each landmark are kept. Every
               place with contrast votes for where a landmark is (its own place plus the way from its code to the
               landmark's), votes of similar codes counting more; then the place around the vote whose features are
               most like the kept patches is taken.
    templates  The surroundings of the structure in every annotated volume are looked for (:mod:`.templates`), and the
               median of what they say is taken.

Which of them serves a structure is measured on the annotated volumes, each located by the others. The six landmarks
give the six walls of the box. No label of the new volume is an argument of anything here.

Source:
    MedLSAM / MedLAM, arXiv:2306.14752, section 3.2 (extreme points, codes averaged over supports, similarity
    refinement with feature patches as kernels, sum of scales, largest response).
Deviations:
    Votes come from all places at once, with a weighted median, instead of ten random crops. A landmark is the middle of
    a layer, not one arbitrary voxel of it. Every annotated volume is compared on its own and responses are averaged.
    The response falls with the distance from the vote, and its centre of mass, not its largest voxel, is taken. The
    sides of the box are drawn towards their mean in the annotated volumes. MedLSAM leaves slices out by the size of
    the true mask (MedSAM/auto_pre_CT.py, ``process_slice``): nothing like it exists here. Templates are not of the
    paper: codes are relative within a volume, and small crops of one organ give them too little to agree on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from samgraft.errors import ConfigError, ShapeError
from samgraft.volumetric.localisation.landmarks import Located, Support
from samgraft.volumetric.localisation.network import (
    CODE_SCALE,
    STRIDES,
    PositionNet,
    cell_centres,
    contrast_cells,
    sample,
)
from samgraft.volumetric.localisation.templates import Template, cut_template, moved_landmarks

Start = Literal["votes", "templates"]
STARTS: tuple[Start, ...] = ("templates", "votes")
"""Ways to find landmarks; the first serves where nothing can be measured."""


@dataclass(frozen=True, kw_only=True)
class LocatorConfig:
    """How landmarks are found."""

    start: Literal["votes", "templates", "best"] = "best"
    """"best" takes, per structure, what locates the annotated volumes better, each by the others."""
    margin: float = 6.0
    """mm around the structure that belong to a template."""
    near: float = 10.0
    """mm: votes of places whose code is this far from the landmark's count exp(-1/2)."""
    refine: float = 6.0
    """mm around the vote that are searched for the most similar place; 0 for no refinement."""
    step: float = 2.0
    """mm between the places that are tried."""
    patch: int = 3
    """Cells along each side of a feature patch, odd."""
    sharpness: float = 20.0
    """Factor on mean cosines before the centre of mass is taken."""
    size_prior: float = 0.5
    """Weight of the mean side of the structure in annotated volumes against the side that was found, in [0, 1]."""
    least_contrast: float = 0.05
    """Cells that are flatter than this do not vote."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.start not in (*STARTS, "best"):
            raise ConfigError(f"locator: start is {self.start!r}; expected votes, templates or best")
        if self.margin < 0:
            raise ConfigError(f"locator: margin is {self.margin}; expected mm, 0 or more")
        if not self.near > 0 or self.refine < 0 or not self.step > 0 or self.patch < 1 or self.patch % 2 == 0:
            raise ConfigError(
                f"locator: near {self.near}, refine {self.refine}, step {self.step}, patch {self.patch}; expected mm "
                "above 0 (refine may be 0) and an odd number of cells"
            )
        if not 0 <= self.size_prior <= 1:
            raise ConfigError(f"locator: size_prior is {self.size_prior}; expected a share in [0, 1]")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Locator:
    """A position network and what it has seen of annotated volumes.

    Args:
        network: Trained, in evaluation mode.
        config: How landmarks are found.
        classes: Class -> name.
        codes: Class -> (S, 6, 3) codes of landmarks in S annotated volumes, mm.
        patches: Class -> per scale (S, 6, C, n) feature patches of length 1.
        sides: Class -> (S, 3) sides of the structure, mm from the centre of the first to that of the last layer.
        templates: Class -> S templates.
        errors: Class -> way to find landmarks -> mean wall distance in mm when each annotated volume is located by
            the others; empty for a class that one volume shows.
    """

    def __init__(
        self,
        network: PositionNet,
        config: LocatorConfig,
        *,
        classes: Mapping[int, str],
        codes: Mapping[int, Tensor],
        patches: Mapping[int, list[Tensor]],
        sides: Mapping[int, Tensor],
        templates: Mapping[int, Sequence[Template]],
        errors: Mapping[int, Mapping[Start, float]] | None = None,
    ) -> None:
        """Keep the parts."""
        self.network, self.config = network, config
        self.classes = dict(classes)
        self.codes, self.patches, self.sides = dict(codes), dict(patches), dict(sides)
        self.templates = {value: list(some) for value, some in templates.items()}
        self.errors = {value: dict(some) for value, some in (errors or {}).items()}

    @classmethod
    def of(
        cls,
        network: PositionNet,
        supports: Sequence[Support],
        classes: Mapping[int, str],
        config: LocatorConfig | None = None,
    ) -> "Locator":
        """Look at annotated volumes once.

        Args:
            network: Trained.
            supports: 3 to 10 annotated volumes; a class may be missing in some.
            classes: Class -> name.
            config: How landmarks are found.

        Raises:
            ConfigError: a class that no volume shows.
        """
        config = config or LocatorConfig()
        codes: dict[int, list[Tensor]] = {value: [] for value in classes}
        patches: dict[int, list[list[Tensor]]] = {value: [] for value in classes}
        sides: dict[int, list[Tensor]] = {value: [] for value in classes}
        templates: dict[int, list[Template]] = {value: [] for value in classes}
        spacing = network.config.spacing
        for support in supports:
            seen = _look(network, support.image)
            for value, walls in support.walls.items():
                if value not in classes:
                    continue
                places = torch.as_tensor(walls, dtype=torch.float32)
                codes[value].append(sample(seen.codes, places, STRIDES[CODE_SCALE], spacing))
                patches[value].append([_patches(f, places, s, spacing, config.patch) for f, s in seen.levels()])
                sides[value].append(places[1::2].diagonal() - places[::2].diagonal())
                templates[value].append(cut_template(support.image, walls, spacing, config.margin))
        missing = [name for value, name in classes.items() if not codes[value]]
        if missing:
            raise ConfigError(f"no annotated volume shows {', '.join(missing)}; add one, or leave the class out")
        found = cls(
            network,
            config,
            classes=classes,
            codes={value: torch.stack(some) for value, some in codes.items()},
            patches={
                value: [torch.stack(level) for level in zip(*some, strict=True)] for value, some in patches.items()
            },
            sides={value: torch.stack(some) for value, some in sides.items()},
            templates=templates,
        )
        found.errors = found._leave_one_out(supports)
        return found

    def start_of(self, value: int) -> Start:
        """How the landmarks of a class are found."""
        if self.config.start != "best":
            return self.config.start
        errors = self.errors.get(value) or {STARTS[0]: 0.0}
        return min(errors, key=errors.__getitem__)

    def by(self, start: Start) -> "Locator":
        """The same locator, finding landmarks in one way for all classes."""
        return self._with(replace(self.config, start=start), {v: list(range(len(s))) for v, s in self.sides.items()})

    def _with(self, config: LocatorConfig, rows: Mapping[int, list[int]]) -> "Locator":
        """A locator of the classes of ``rows`` alone that knows these rows of their annotated volumes."""
        return Locator(
            self.network,
            config,
            classes={value: self.classes[value] for value in rows},
            codes={value: self.codes[value][some] for value, some in rows.items()},
            patches={value: [level[some] for level in self.patches[value]] for value, some in rows.items()},
            sides={value: self.sides[value][some] for value, some in rows.items()},
            templates={value: [self.templates[value][i] for i in some] for value, some in rows.items()},
        )

    def _leave_one_out(self, supports: Sequence[Support]) -> dict[int, dict[Start, float]]:
        """Class -> way -> mean wall distance in mm over the annotated volumes, each located by the others."""
        starts = STARTS if self.config.start == "best" else (self.config.start,)
        seen, found = dict.fromkeys(self.classes, 0), dict[int, dict[Start, list[float]]]()
        for support in supports:
            others = {}
            for value in self.classes.keys() & support.walls.keys():
                others[value] = [i for i in range(len(self.sides[value])) if i != seen[value]]
                seen[value] += 1
            others = {value: rows for value, rows in others.items() if rows}
            for start in starts if others else ():
                located = self._with(replace(self.config, start=start), others).locate(support.image)
                for value, one in located.items():
                    found.setdefault(value, {}).setdefault(start, []).append(one.wall_distance(support.walls[value]))
        return {value: {start: float(np.mean(e)) for start, e in own.items()} for value, own in found.items()}

    def locate(self, image: Tensor) -> dict[int, Located]:
        """Boxes of all classes in a new volume.

        Args:
            image: (D, H, W) in [0, 1] at the network's spacing.
        """
        if image.ndim != 3:
            raise ShapeError(f"image is {tuple(image.shape)}; expected (D, H, W)")
        seen, found = None, {}
        limit = (torch.tensor(image.shape) - 1) * self.network.config.spacing
        for value in self.classes:
            if self.start_of(value) == "templates":
                alone = moved_landmarks(image, self.templates[value], self.network.config.spacing)
                landmarks = alone.quantile(0.5, dim=0)
            else:
                seen = seen or _look(self.network, image)
                alone, landmarks = self._voted(value, seen, self._voters(image, seen))
            low, high = self._walls(landmarks, value)
            low, high = (torch.minimum(v.clamp_min(0), limit) for v in (low, high))
            found[value] = Located(
                low=low.double().numpy(),
                high=high.double().numpy(),
                landmarks=landmarks.double().numpy(),
                spread=float((alone - alone.mean(dim=0)).norm(dim=-1).mean()),
            )
        return found

    def _voters(self, image: Tensor, seen: "_Seen") -> tuple[Tensor, Tensor]:
        """Codes and middles (n, 3), mm, of the cells with contrast."""
        cells = contrast_cells(image.float(), STRIDES[CODE_SCALE], self.config.least_contrast)
        if not cells.any():
            cells = torch.ones_like(cells)
        centres = cell_centres(tuple(cells.shape), STRIDES[CODE_SCALE], self.network.config.spacing)[cells]
        return seen.codes.permute(1, 2, 3, 0)[cells], centres

    def _voted(self, value: int, seen: "_Seen", voters: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(S, 6, 3) what each annotated volume says, and (6, 3) what all say after refinement."""
        kept = self.codes[value]
        alone = torch.stack([self._votes(one, *voters) for one in kept])
        coarse = self._votes(kept.mean(dim=0), *voters)
        return alone, self._refined(coarse, value, seen) if self.config.refine else coarse

    def _votes(self, landmarks: Tensor, codes: Tensor, centres: Tensor) -> Tensor:
        """(6, 3): weighted medians of what all places say of landmarks with these codes (6, 3)."""
        ways = landmarks[:, None] - codes[None]
        votes = centres[None] + ways
        apart = ways.norm(dim=-1)
        nearest = apart.min(dim=1, keepdim=True).values
        weights = torch.exp(-0.5 * ((apart - nearest) / self.config.near) ** 2)
        return torch.stack([_weighted_median(v, w) for v, w in zip(votes, weights, strict=True)])

    def _refined(self, coarse: Tensor, value: int, seen: "_Seen") -> Tensor:
        """(6, 3): centres of mass of the likeness around each landmark."""
        config, spacing = self.config, self.network.config.spacing
        count = int(config.refine / config.step)
        axis = torch.arange(-count, count + 1) * config.step
        shifts = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
        shifts = shifts[shifts.norm(dim=1) <= config.refine + 1e-6]
        penalty = 0.5 * (shifts.norm(dim=1) / config.refine) ** 2
        found = []
        for number, place in enumerate(coarse):
            likeness = torch.zeros(len(shifts))
            for level, (features, stride) in enumerate(seen.levels()):
                kept = self.patches[value][level][:, number]
                here = _patches(features, place + shifts, stride, spacing, config.patch)
                likeness += torch.einsum("ncp,scp->n", here, kept) / (len(kept) * kept.shape[2] * len(STRIDES))
            weights = (config.sharpness * likeness - penalty).softmax(dim=0)
            found.append(place + weights @ shifts)
        return torch.stack(found)

    def _walls(self, landmarks: Tensor, value: int) -> tuple[Tensor, Tensor]:
        """First and last layers (3,), mm; sides are drawn towards their mean in annotated volumes."""
        low, high = landmarks[::2].diagonal(), landmarks[1::2].diagonal()
        share = self.config.size_prior
        middle = (low + high) / 2
        side = (1 - share) * (high - low).clamp_min(0) + share * self.sides[value].mean(dim=0)
        return middle - side / 2, middle + side / 2


@dataclass(frozen=True, eq=False)
class _Seen:
    """A volume as the network sees it."""

    codes: Tensor
    """(3, d, h, w) mm."""
    features: list[Tensor]
    """(C, d, h, w) per scale."""

    def levels(self) -> list[tuple[Tensor, int]]:
        """Features and stride of each scale."""
        return list(zip(self.features, STRIDES, strict=True))


def _look(network: PositionNet, image: Tensor) -> _Seen:
    with torch.no_grad():
        codes, features = network(image[None, None].float())
    return _Seen(codes[0], [level[0] for level in features])


def _patches(features: Tensor, places: Tensor, stride: int, spacing: float, patch: int) -> Tensor:
    """(n, C, patch^3): features around ``places`` (n, 3) mm, one cell apart."""
    offsets = (torch.arange(patch) - patch // 2) * (stride * spacing)
    around = torch.stack(torch.meshgrid(offsets, offsets, offsets, indexing="ij"), dim=-1).reshape(-1, 3)
    found = sample(features, (places[:, None] + around).reshape(-1, 3), stride, spacing)
    return found.reshape(len(places), len(around), -1).transpose(1, 2)


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """(3,) of values (n, 3), per coordinate, with weights (n,)."""
    ordered, order = values.sort(dim=0)
    running = weights[order].cumsum(dim=0)
    at = (running >= 0.5 * running[-1]).int().argmax(dim=0)
    return ordered.gather(0, at[None])[0]
