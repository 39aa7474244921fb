"""The commands: each composes its settings and calls the layers below."""
