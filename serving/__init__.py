"""The data plane: given a table of routes it serves models, whatever else is down."""
