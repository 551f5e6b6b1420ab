"""How an image forms: poses, CTF, Fourier helpers, the projector and its exact adjoint."""
