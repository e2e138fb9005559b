"""Operators and slicing: what only speed needs. `layers` defines the same computations as the papers do."""
