"""A space: towers that end in one width, and how items become vectors there."""
