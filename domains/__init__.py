"""Files to arrays and back: readers (Scene), writers, datasets. No model code.

``open_scene`` reads, ``Segmentation.save`` and the ``write_*`` functions write; the rest is in the submodules.
"""

from samgraft.domains.atomic import atomic_path
from samgraft.domains.medical.intensity import Intensity, ct_window, fit_intensity
from samgraft.domains.medical.itk import write_itk
from samgraft.domains.medical.nifti import write_nifti, write_nifti_image
from samgraft.domains.opening import open_scene
from samgraft.domains.picture.picture import write_png
from samgraft.domains.scene import Scene

__all__ = [
    "Intensity",
    "Scene",
    "atomic_path",
    "ct_window",
    "fit_intensity",
    "open_scene",
    "write_itk",
    "write_nifti",
    "write_nifti_image",
    "write_png",
]
