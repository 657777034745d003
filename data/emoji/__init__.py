"""The world of animated emoji: Microsoft's Fluent emoji over plain backgrounds."""
