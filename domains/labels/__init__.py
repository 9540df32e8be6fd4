"""Labels of rasters larger than memory: drawn by window, counted by window, and split by blocks on the ground."""
