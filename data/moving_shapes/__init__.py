"""A procedural captioned world: one marked shape doing one motion."""
