"""Kits: an artifact with samx.pyz, which judges and measures it on a device where samx is not installed."""
