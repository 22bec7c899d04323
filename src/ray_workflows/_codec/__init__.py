"""Encodes journal entries and values as bytes, with versions and checksums."""
