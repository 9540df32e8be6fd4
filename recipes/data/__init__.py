"""Data modules: volumes in nnU-Net layout, pictures with masks, rasters with polygons, all as cases of 2D slices."""
