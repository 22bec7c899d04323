"""The user verbs in the calling process: reads go to the storage, writes to the coordinator."""
