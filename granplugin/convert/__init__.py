"""What other tools decided, as recipes: modelopt's configs, and checkpoints that hold amax."""
