"""What comes in: STAR metadata, image stacks, half-sets, preprocessing, the image cache."""
