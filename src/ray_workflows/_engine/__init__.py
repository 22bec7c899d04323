"""The pure core: what happens next, given what has happened.

No clock, no randomness, no I/O, no threads, no Ray: time comes in as an argument, everything else
in messages, so that a journal replays to the same state for ever.
"""
