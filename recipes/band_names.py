"""Bands of rasters by name: an adapter trained on one sensor finds its bands in the files of another.

The numbers of bands mean something for one kind of file only; red is band 4 of Sentinel-2, 3 of Landsat and 1 of NAIP.
Where the rasters of training name their bands, the adapter remembers the names of those that it saw.
"""

from collections.abc import Sequence

from samgraft.domains.scene import Scene
from samgraft.errors import InputError
from samgraft.recipes.look import shown_channels

GRAY = ("pan", "gray")
"""Names of a band that holds all visible light: it stands for red, green and blue together."""
_VISIBLE = ("red", "green", "blue")


def common_bands(scenes: Sequence[Scene], bands: Sequence[int] | None) -> tuple[str, ...] | None:
    """Common names of the channels that are seen of all rasters.

    Args:
        scenes: What training sees.
        bands: Channels (from 0) that were asked for; None: those that :func:`shown_channels` takes.

    Returns:
        One or three names, or None where a band has no name, or rasters differ.
    """
    found = {_names(scene, shown_channels(scene, bands)) for scene in scenes}
    names = found.pop() if len(found) == 1 else None
    return None if names is None or None in names else tuple(name for name in names if name is not None)


def bands_by_name(scene: Scene, bands: tuple[int, ...] | None, names: tuple[str, ...] | None) -> tuple[int, ...] | None:
    """Channels of a scene by the names of training.

    Args:
        scene: What is to be segmented.
        bands: Channels by number, as recorded; taken where names are not known on either side.
        names: Names of those of training, or None.

    Returns:
        Channels (from 0). A single panchromatic or gray band stands for red, green and blue, and is shown as gray.
        None leaves the choice to :func:`shown_channels`.

    Raises:
        InputError: numbers are recorded, the bands of the scene have names, and one of training is not among them.
    """
    if scene.kind != "raster" or names is None:
        return bands
    there = _names(scene, tuple(range(scene.channels)))
    if not any(there):
        return bands
    if all(name in there for name in names):
        return tuple(there.index(name) for name in names)
    gray = next((there.index(name) for name in GRAY if name in there), None)
    if gray is not None and set(names) <= {*_VISIBLE, *GRAY}:
        return (gray,)
    if bands is None or scene.channels == len(names):  # the file's own choice, or the user's by --bands
        return None
    have = ", ".join(name or "?" for name in there)
    raise InputError(
        f"{scene.path.name} has the bands {have}; the adapter was trained on {', '.join(names)}; choose bands in that "
        "order with --bands, or name the sensor with --sensor"
    )


def _names(scene: Scene, channels: Sequence[int]) -> tuple[str | None, ...]:
    """Common names of channels, None where there is none."""
    from samgraft.domains.remote_sensing.sensor import band_names, common_name

    colours = getattr(scene, "color", ())
    known = band_names([None] * scene.channels, colours) if len(colours) == scene.channels else [None] * scene.channels
    return tuple(common_name(scene.channel_names[c]) or known[c] for c in channels)
