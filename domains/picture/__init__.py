"""Pictures without a world: PNG, JPEG, plain TIFF."""
