"""What a model itself costs in a worker, as it is and compiled."""
