"""Features of the frozen part of the encoder, computed once and kept on disk."""
