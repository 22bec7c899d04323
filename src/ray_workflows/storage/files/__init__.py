"""Blobs as files, and helpers for file systems."""
