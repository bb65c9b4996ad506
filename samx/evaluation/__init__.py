"""Accuracy: masks of an artifact, and of PyTorch beside it, against labels of the user's own."""
