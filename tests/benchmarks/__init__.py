"""Benchmarks on real images: ``python -m tests.benchmarks.{zero_shot,first_slice,render}``."""
