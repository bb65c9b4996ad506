"""Evaluate Core ML packages in PyTorch, on any machine."""
