"""What takes part in a run: hooks, runners and what they need."""
