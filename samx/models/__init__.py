"""What is exported: specs, families, checkpoints, the reference decoder and its rearranged forms."""
