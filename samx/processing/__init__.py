"""Pictures and prompts in, masks out; NumPy only."""
