"""Frozen records and the words of the vocabulary; no behaviour beyond validation."""
