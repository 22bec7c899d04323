"""Turns live Python and Ray objects into plans and stored values, and back."""
