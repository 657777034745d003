"""UCF-101 from a user's own copy of the archive."""
