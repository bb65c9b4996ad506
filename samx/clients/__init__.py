"""Client code beside an artifact: from a picture to a mask in the target's own runtime, without samx."""
