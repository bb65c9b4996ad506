"""The deploy form: the reference decoder's function, rewritten exactly for inference (docs/architecture.md)."""
