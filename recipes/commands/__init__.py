"""One module per command of ``samgraft``; each has ``run(arguments)`` and imports what it needs inside."""
