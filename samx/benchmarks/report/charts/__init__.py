"""Charts as inline SVG that takes its colours and its font from the page."""
