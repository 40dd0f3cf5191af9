"""Text generation as gymnasium environments."""
