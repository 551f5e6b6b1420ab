"""The improved map: deformed weighted backprojection, the inverse field, and Fourier shell correlation."""
