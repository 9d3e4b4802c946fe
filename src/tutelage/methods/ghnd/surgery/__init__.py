"""Operations on networks for this method."""
