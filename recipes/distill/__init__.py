"""Distillation: a smaller encoder learns to answer like a larger frozen backbone, on images without labels."""
