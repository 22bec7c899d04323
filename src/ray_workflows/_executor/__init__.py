"""Runs attempts and reports what became of them. It decides nothing and commits nothing."""
