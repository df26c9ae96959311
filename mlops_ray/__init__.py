"""A tabular model's whole life on Ray: from dirty raw data to a monitored prediction whose cost is known."""

__version__ = "0.1.0"
