"""The lower-level problem, Algorithms 1 and 2, their gradients and certified optima."""
