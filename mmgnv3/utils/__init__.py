"""What every floor above may use, a module for each idea."""
