"""Run Core ML packages on a Mac."""
