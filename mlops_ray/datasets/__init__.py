"""The data of the examples, and what they need beside the tables themselves."""
