"""The claims of the slides, each judged from the tables of results."""
