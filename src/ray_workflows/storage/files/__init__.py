"""Blobs as files, and what a storage needs of a file system."""
