"""The code of a workflow: finds, packs, stores and unpacks it."""
