"""marginkit."""
