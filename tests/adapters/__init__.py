"""Tests of samgraft.adapters."""
