"""What is learned from weak and partial labels: tiles, losses, and figures without masks."""
