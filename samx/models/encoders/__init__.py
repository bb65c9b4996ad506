"""Image encoders: one file an architecture, which defines ENCODER; families name those that they have."""
