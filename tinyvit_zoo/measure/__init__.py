"""Measure models: accuracy, features, robustness, cost and speed."""
