"""How fast decoders run, measured side by side."""
