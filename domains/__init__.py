"""Files to arrays and back: readers (Scene), writers, datasets. No model code."""
