"""What happened to a run, for people and programs."""
