"""The encoder: particle image to latent distribution."""

import torch
import torch.nn.functional as F
from torch import nn

from dynamight_core.imaging.masks import soft_circle

# Width of the circular mask's edge, pixels.
_EDGE = 3.0


class Encoder(nn.Module):
    """Linear 256, ReLU, linear 128, ReLU, and two heads (paper, Methods; the published program ends with tanh).

    The paper takes the full image, the published program averages it over 2 x 2 pixels.

    Parameters
    ----------
    box
        of the images, pixels.
    n_latents
        dimensions of the latent space.
    mask_radius
        of the soft circular mask, pixels.
    width
        neurons of the first layer; the second has half.
    pooling
        pixels along each axis over which the input is averaged.
    """

    def __init__(self, box: int, n_latents: int, mask_radius: float, width: int = 256, pooling: int = 2):
        super().__init__()
        self.pooling, self.pooled, half = pooling, box // pooling, width // 2
        self.layers = nn.Sequential(nn.Linear(self.pooled**2, width), nn.ReLU(), nn.Linear(width, half), nn.ReLU())
        self.mean = nn.Linear(half, n_latents)
        self.log_variance = nn.Linear(half, n_latents)
        self.mask = nn.Buffer(soft_circle(box, 1.0, 2 * mask_radius, _EDGE), persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance, (b, n_latents) each, of (b, box, box) centred images."""
        pooled = F.avg_pool2d((images * self.mask)[:, None], self.pooling)[:, 0].flatten(1)
        # Unit variance whatever the signal-to-noise ratio and the pooling leave.
        pooled = pooled / pooled.std(1, keepdim=True).clamp(min=1e-6)
        hidden = self.layers(pooled)
        return self.mean(hidden), self.log_variance(hidden)
