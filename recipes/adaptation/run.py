"""An adaptation from a source adapter and target images to an adapted bundle: what ``samgraft adapt`` does."""

from collections.abc import Sequence
from pathlib import Path

from samgraft.adapters.backbones.base import Backbone
from samgraft.recipes.adaptation.config import AdaptConfig
from samgraft.recipes.adaptation.result import AdaptResult
from samgraft.recipes.config import DataConfig


def adapt(
    source: Path,
    images: Sequence[Path] | DataConfig,
    out: Path,
    config: AdaptConfig | None = None,
    *,
    work: Path | None = None,
    resume: bool = False,
    backbone: Backbone | None = None,
    report: bool = True,
) -> AdaptResult:
    """Adapt without labels.

    Args:
        source: Adapter file; it is read only.
        images: Target images: files or folders of them; or a data set's configuration, of which only the images of the
            training side are listed. Labels are never opened.
        out: The bundle to write.
        config: Everything that decides the run.
        work: Folder for settings, state, history and report; None puts ``<name of out>.adapt`` beside ``out``.
        resume: Continue a run that was stopped in ``work``.
        backbone: Ready backbone without grafts; None loads the one that the adapter names. It comes back bare.
        report: Write the HTML page.

    Raises:
        InputError: no image, or nothing to resume.
        OutputError: the folder holds a run already and ``resume`` is False, or nothing can be written.
        CheckpointError: a damaged adapter, or one of another backbone.
    """
    raise NotImplementedError
