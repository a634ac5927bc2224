"""Tasks and the choice of demonstrations."""
