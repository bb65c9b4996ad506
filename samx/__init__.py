"""Export the Segment Anything mask decoder to devices, with proof that it still computes the same masks."""

__version__ = "0.1.0"
