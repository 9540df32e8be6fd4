"""``samgraft doctor``: what is wrong with a file, a DICOM series or a data set; where, and what to do."""
