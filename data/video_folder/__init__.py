"""A folder of a user's own clips with captions."""
