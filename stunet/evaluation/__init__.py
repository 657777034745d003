"""Measures of what a model made; nothing here knows how it was made."""
