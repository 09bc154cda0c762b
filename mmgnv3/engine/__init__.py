"""What takes part in a run: hooks and what they need."""
