"""Figures, the page and the dashboard, all from tables alone."""
