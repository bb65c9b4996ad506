"""Write graphs in a backend's format."""
