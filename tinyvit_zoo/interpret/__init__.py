"""Look inside models: attention, similarity of layers, positions, and pictures of them."""
