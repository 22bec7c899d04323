"""Which code a workflow needs: what is found, packed, stored, and unpacked again."""
