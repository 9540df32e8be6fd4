"""Training, inference, command line and reports: the only folder that knows Lightning.

Nothing heavy is imported here; ``samgraft.recipes.api`` holds the public functions and ``samgraft.recipes.cli`` the
command line.
"""
