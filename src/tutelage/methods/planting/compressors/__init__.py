"""How ``tutelage compress`` uses this method."""
