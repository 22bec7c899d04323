"""From live Python and Ray objects to plans and stored values, and back. It decides nothing."""
