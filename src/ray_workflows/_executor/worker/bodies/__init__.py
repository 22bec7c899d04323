"""Runs the code of durable functions, so that it does the same each time. Pure: no Ray, no I/O."""
