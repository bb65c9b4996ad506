"""Run artifacts: one module or folder a backend."""
