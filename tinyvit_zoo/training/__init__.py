"""Training that reproduces its weights: the one loop, what it optimises, what it keeps. Imported where it is used."""
