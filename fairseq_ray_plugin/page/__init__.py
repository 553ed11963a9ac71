"""The account of a run, for people: on a terminal, as a page, as a trace."""
