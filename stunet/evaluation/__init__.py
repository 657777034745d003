"""Scores of generated clips, from their pixels alone."""
