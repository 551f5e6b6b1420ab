"""Controls for model bias: whether a map or a motion comes from the images or from the method."""
