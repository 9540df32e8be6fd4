"""Pretraining of graft-tiny on procedural images: shapes, scenes, appearance, prompts, loop, export."""
