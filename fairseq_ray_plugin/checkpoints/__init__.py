"""States in files: in a node's memory and in the save dir."""
