"""Which attempts run next, together with which others, in which Ray task."""
