"""The control plane: what should serve, how well it does, and how to get back to what was good."""
