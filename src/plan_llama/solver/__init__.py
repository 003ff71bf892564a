"""The fastest plan that fits: wishes, the space of placements, the search and its explanation. Pure."""
