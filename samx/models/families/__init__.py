"""One file a family: its keys, sizes and rules."""
