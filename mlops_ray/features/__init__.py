"""Features, right at any point in time, the same offline and online."""
