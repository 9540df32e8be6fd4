"""Medical volumes: NIfTI, DICOM series, MHA / NRRD, and their intensity scales."""
