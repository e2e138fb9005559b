"""CPU operators, slicing and memory: the same computations as the definitions, faster."""
