"""An adapter fitted to one scene when it is used, without labels, and reset after it."""
