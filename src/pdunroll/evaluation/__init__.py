"""Error curves, the tables of results, and what the theorems say about an operator."""
