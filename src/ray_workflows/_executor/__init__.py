"""Runs attempts and reports their outcomes. It decides nothing and commits nothing."""
