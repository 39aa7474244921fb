"""Figures, the page and the dashboards, all from tables alone."""
