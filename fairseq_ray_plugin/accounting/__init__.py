"""Where the time of a run went, from its journal alone."""
