"""The commands: each composes its settings and calls what is below."""
