"""The Neural Engine form: the reference decoder's function in the layout that Apple's Neural Engine wants.

Tensors are (N, C, 1, S): channels first, the 4096 image tokens or the tokens on the last axis, 1x1 convolutions for
linear layers, four axes throughout. Nothing large is transposed, and everything has one fixed shape.
Source: Apple, "Deploying Transformers on the Apple Neural Engine".

Letters in the shape comments: N prompts, P points, T tokens, L = G*G image tokens, S tokens of either kind, C = 256
channels, h heads of width d.
"""
