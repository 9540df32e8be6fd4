"""Indexes of labelled data sets: which image has which label, which case belongs to which split."""
