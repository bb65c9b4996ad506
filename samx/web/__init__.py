"""A page that segments pictures: as a static site that computes in the browser, or served from this machine."""
