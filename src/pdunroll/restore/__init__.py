"""Restoring a user's own recording."""
