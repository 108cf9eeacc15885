"""HTTP only: one file per resource, status codes in errors.py."""
