"""Core ML: packages, their MIL programs, and what can be known about them without a Mac."""
