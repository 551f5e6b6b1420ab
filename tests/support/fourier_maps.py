"""Maps by Fourier inversion, independent of the engine's projector."""

from dynamight_core.simulate.fourier_reconstruction import FourierReconstruction


def reconstruct_fourier(images, ctf, angles, shifts, box, pixel_size):
    """Return the (box, box, box) map of (n, box, box) images with (n, 3) radians and (n, 2) shifts in A."""
    reconstruction = FourierReconstruction(box, pixel_size)
    reconstruction.insert(images, ctf, angles, shifts)
    return reconstruction.volume()
