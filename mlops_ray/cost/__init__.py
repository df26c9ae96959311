"""Money: what machines cost, what a prediction costs on them, and what it earns.

Plain arithmetic of plain data. Every amount is of one currency, and none is turned into another.
"""
