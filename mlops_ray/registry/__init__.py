"""What a version of a model is, how it answers, and where it is registered."""
