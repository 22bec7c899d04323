"""What runs in the worker processes of Ray."""
