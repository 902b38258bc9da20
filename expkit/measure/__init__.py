"""The clock, the stopping rule, the statistics and the environment."""
