"""Bytes of the journal and of values: versions and checksums; nothing of what they mean."""
