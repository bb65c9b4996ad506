"""Masks of many pictures: where they lie, who works on them, and what is written."""
