"""Several adapters on one backbone in memory, one of them in use at a time.

    shelf = AdapterShelf(load_backbone("sam-vit-base"))
    shelf.add("spleen", "spleen.graft")
    shelf.add("kidney", "kidney.graft")
    with shelf.using("spleen") as grafted:
        output = grafted.predict(image)
    outputs = shelf.predict(image)  # all of them; the encoder runs once for those that leave it alone

An adapter that is not in use takes the memory of its own tensors and nothing else: the backbone is shared.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

from torch import Tensor

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.bundle import load_bundle
from samgraft.adapters.decoders.base import SemanticOutput
from samgraft.adapters.graft import Grafted
from samgraft.errors import ConfigError, NoMatchError


class AdapterShelf:
    """Named adapters for one backbone.

    Attributes:
        backbone: Carries nothing while no adapter is in use.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Start empty.

        Raises:
            ConfigError: ``backbone`` carries grafts.
        """
        if backbone.occupied:
            raise ConfigError(f"backbone {backbone.spec.name!r} carries grafts; detach() them, then add them here")
        self.backbone = backbone
        self._adapters: dict[str, Grafted] = {}
        self._shares_encoder: dict[str, bool] = {}
        self._used = ""

    def names(self) -> tuple[str, ...]:
        """Names in the order in which they were added."""
        return tuple(self._adapters)

    def add(self, name: str, adapter: Grafted | str | os.PathLike[str]) -> None:
        """Put an adapter on the shelf.

        Args:
            name: Not taken yet.
            adapter: A file, or what was attached to this backbone; that is detached here.

        Raises:
            ConfigError: the name is taken, another adapter is in use, or ``adapter`` sits on another backbone.
            CheckpointError: the file does not fit this backbone.
        """
        if name in self._adapters:
            raise ConfigError(f"there is an adapter {name!r} already; choose another name, or remove() it first")
        if self._used:
            raise ConfigError(f"adapter {self._used!r} is in use; add {name!r} after its block")
        grafted = adapter if isinstance(adapter, Grafted) else load_bundle(adapter, self.backbone)
        if grafted.backbone is not self.backbone:
            raise ConfigError(f"adapter {name!r} sits on another backbone object; load its file into this one")
        if not grafted.attached:
            grafted.install()
        self._shares_encoder[name] = grafted.frozen_encoder()
        grafted.detach()
        self._adapters[name] = grafted

    def remove(self, name: str) -> Grafted:
        """Take an adapter from the shelf; ``install()`` puts it into the backbone again.

        Raises:
            NoMatchError: no such adapter.
            ConfigError: it is in use.
        """
        grafted = self._find(name)
        if name == self._used:
            raise ConfigError(f"adapter {name!r} is in use; remove it after its block")
        del self._adapters[name], self._shares_encoder[name]
        return grafted

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[Grafted]:
        """Install one adapter for the block, and take it out at its end, also after an error.

        Raises:
            NoMatchError: no such adapter.
            ConfigError: another one is in use.
        """
        grafted = self._find(name)
        if self._used:
            raise ConfigError(f"adapter {self._used!r} is in use; leave its block before using {name!r}")
        self._used = name
        try:
            grafted.install()
            yield grafted
        finally:
            grafted.detach()
            self._used = ""

    def predict(self, image: Tensor, names: Sequence[str] | None = None) -> dict[str, SemanticOutput]:
        """Class maps of several adapters for the same images.

        Args:
            image: (B, 3, H, W) in [0, 1].
            names: Which adapters; None for all. The encoder runs once for all of these that do not change it.

        Raises:
            NoMatchError: no such adapter.
            ConfigError: an adapter is in use, or gives no class maps.
        """
        chosen = {name: self._find(name) for name in (self.names() if names is None else names)}
        sharing = [grafted for name, grafted in chosen.items() if self._shares_encoder[name]]
        shared: Features | None = None
        outputs = {}
        for name in chosen:
            with self.using(name) as grafted:
                if self._shares_encoder[name] and shared is None:
                    shared = grafted.encode(image, sorted({tap for other in sharing for tap in other.taps()}))
                features = shared if self._shares_encoder[name] else None
                outputs[name] = grafted.predict(image, features=features)
        return outputs

    def _find(self, name: str) -> Grafted:
        if name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise NoMatchError(f"there is no adapter {name!r} on this shelf; known: {known}")
        return self._adapters[name]
