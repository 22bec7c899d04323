"""What a workflow needs to find its code again: the driver's runtime environment and modules."""
