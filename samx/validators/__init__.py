"""Prompt cases, metrics and the parity gate."""
