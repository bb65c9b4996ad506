"""The parts of run.py, the one-file program in a kit. They import NumPy, the standard library and each other only."""
