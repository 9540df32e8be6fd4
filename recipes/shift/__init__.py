"""See the shift between two sets of images: their pixels, their frozen features, and which lever is worth trying."""
