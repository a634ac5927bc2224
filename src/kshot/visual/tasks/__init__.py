"""Tasks that are answered by pictures, from files in their published layouts."""
