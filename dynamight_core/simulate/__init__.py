"""Ground-truth data sets: molecules that move, the images they give, and what is true about each particle."""
