"""What the control plane keeps, and the only way to write routes."""
