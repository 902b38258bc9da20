"""What a trial finds, what a run records of it, and a run read back from its record."""
