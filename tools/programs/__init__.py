"""Run our exports in other programs' own classes, beside the exports that those are made for."""
