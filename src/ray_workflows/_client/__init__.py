"""What users ask, from their side: reads go to storage, writes to the coordinator."""
