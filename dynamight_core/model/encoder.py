"""The encoder: particle image to latent distribution."""

import torch
import torch.nn.functional as F
from torch import nn

from dynamight_core.imaging.masks import soft_circle

# Width of the circular mask's edge, pixels.
_EDGE = 3.0


class Encoder(nn.Module):
    """Linear 256, ReLU, linear 128, ReLU, and two heads (paper, Methods; the published program uses tanh).

    Parameters
    ----------
    box
        of the images, pixels.
    n_latents
        dimensions of the latent space.
    mask_radius
        of the soft circular mask, pixels.
    """

    def __init__(self, box: int, n_latents: int, mask_radius: float):
        super().__init__()
        self.pooled = box // 2
        self.layers = nn.Sequential(nn.Linear(self.pooled**2, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())
        self.mean = nn.Linear(128, n_latents)
        self.log_variance = nn.Linear(128, n_latents)
        self.mask = nn.Buffer(soft_circle(box, 1.0, 2 * mask_radius, _EDGE), persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance, (b, n_latents) each, of (b, box, box) centred images."""
        pooled = F.avg_pool2d((images * self.mask)[:, None], 2)[:, 0, : self.pooled, : self.pooled].flatten(1)
        # Unit variance whatever the signal-to-noise ratio and the pooling leave.
        pooled = pooled / pooled.std(1, keepdim=True).clamp(min=1e-6)
        hidden = self.layers(pooled)
        return self.mean(hidden), self.log_variance(hidden)
