"""From a raw file to rows that can be trusted."""
