"""The fast form: the reference decoder's function, rearranged for inference."""
