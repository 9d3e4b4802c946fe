"""Ways to networks that are not in the zoo, a file each."""
