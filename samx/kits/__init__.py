"""Kits: an artifact with the program that judges and measures it on a device without samx."""
