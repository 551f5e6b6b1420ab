"""What is learned: Gaussian model, neighbour graph, encoder, decoders, inverse field."""
