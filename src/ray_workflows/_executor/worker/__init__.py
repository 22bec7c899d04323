"""The code that runs in Ray's worker processes."""
