"""The graphs that other programs load: their inputs and outputs as data, written around our decoder, and judged."""
