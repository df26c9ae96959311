"""Watching a live model: what comes in, what is wrong with it, and whether it drifts."""
