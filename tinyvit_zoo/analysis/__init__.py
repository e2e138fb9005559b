"""What models do and how well it holds: imported where it is used, needs the `analysis` extra for its pictures."""
