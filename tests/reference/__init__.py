"""Pages of docs/methods, one per method, written from the code: ``python -m tests.reference``."""
