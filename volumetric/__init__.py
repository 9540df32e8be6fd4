"""Three dimensions out of the two-dimensional backbone; takes tensors and spacing, never files."""
