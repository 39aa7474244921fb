"""Figures, the HTML report and the dashboard, made only from tables."""
