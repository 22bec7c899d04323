"""Drives workflows: the loop that alone knows engine, storage and executor together."""
