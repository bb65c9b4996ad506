"""The directory that an export leaves: manifest, hashes, atomic commit."""
