"""Files and vendors' libraries: read, check, stamp, lint."""
