"""Maps of some of a run's particles, as controls make them, and how well such maps explain images.

Controls work on images at the size that training saw: deformations know nothing finer.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from dynamight_core.analysis.domains import masks
from dynamight_core.imaging.backprojection import ParticleData, filter_volume
from dynamight_core.imaging.fourier import expand_shells, plane_multiplicity
from dynamight_core.model.half import ConsensusField
from dynamight_core.options import ControlOptions, ReconstructOptions
from dynamight_core.particles.cache import ImageCache
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.preprocess import Preprocessing
from dynamight_core.reconstruction.deformation import deforming_region, half_modes, supported
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.least_squares import DeformedProjection
from dynamight_core.reconstruction.modes import Modes
from dynamight_core.run import Run
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.inference import infer_latents, random_pixels

# Points whose motion is above this share of what the most mobile ones have belong to the moving part.
_MOVING, _MOST_MOBILE = 0.5, 0.95
# Steps of an inference, as in the support of the modes.
_STEPS = 4
_BATCH = 32


class ControlImages:
    """Some of a run's particles with their images at the working box.

    Parameters
    ----------
    run
        finished and summarised.
    rows
        (n,) of the run's particles; what follows counts them from 0 in this order.
    device
        where to work.
    progress
        takes the number of images read and in all.
    """

    def __init__(self, run: Run, rows: torch.Tensor, device: torch.device, progress=None):
        self.run, self.rows, self.device = run, rows, device
        self.halves, self.validation = run.halves[rows], run.validation[rows]
        for model in run.models:
            model.to(device)
        self.box, self.pixel_size = run.models[0].box, run.models[0].pixel_size
        inputs = run.config.inputs
        preprocessing = Preprocessing(
            self.box, inputs.particle_diameter, mask=False, invert=inputs.invert_contrast, normalise=inputs.normalise
        ).with_set_noise(ImageReader(run.particles), run.config.train.seed)
        self.particles = run.particles.subset(rows.numpy())
        self.matrices = self.particles.matrices
        cache = ImageCache(ImageReader(self.particles), preprocessing, device, inputs.storage, run.path, progress)
        self.training = TrainingImages(cache, self.particles.ctf, self.matrices, self.box, self.pixel_size, device)

    def __len__(self) -> int:
        return len(self.rows)

    def data(self, half: int, share: torch.Tensor | None = None, images=None) -> ParticleData:
        """Return the particles as a reconstruction wants them, the noise being that of a half's model.

        Parameters
        ----------
        half
            1 or 2.
        share
            (n, box, box//2+1) bool or None: the Fourier pixels that are used.
        images
            gives (b, box, box) images instead of the particles' own.
        """
        power = self.run.models[half - 1].noise_power

        def transfer(indices):
            whole = self.training.transfer(indices)
            return whole if share is None else whole * share[indices].to(whole.device)

        return ParticleData(
            images or self.training.images,
            transfer,
            self.matrices,
            self.box,
            self.pixel_size,
            self.box**2 / power,
            self.device,
        )

    def chosen(self, half: int, most: int, seed: int, validation: bool | None = None) -> torch.Tensor:
        """Return at most so many particles of a half, drawn at random; those (not) kept for validation alone."""
        mine = self.halves == half
        if validation is not None:
            mine &= self.validation == validation
        places = torch.where(mine)[0]
        generator = torch.Generator().manual_seed(seed)
        return places[torch.randperm(len(places), generator=generator)[:most]].sort().values


def why_nothing_moves(run: Run, options: ControlOptions) -> str:
    """Return in words why a run without modes of motion has none."""
    if not options.shrink:
        return "The run has learned no motion"
    if not supported(run):
        return "The verdict on the run is that the images do not support its motions"
    return "Held-out images support none of the motion"


@dataclass
class HalfDeformations:
    """The deformations of a half's decoder as a control uses them.

    Parameters
    ----------
    half
        1 or 2.
    modes
        with coordinates (n, K) of the control's particles.
    factors
        (K,) by which the modes were shrunk.
    region
        (box, box, box) weights of the displacement.
    """

    half: int
    modes: Modes
    factors: torch.Tensor
    region: torch.Tensor

    @classmethod
    def of(cls, images: ControlImages, half: int, options: ControlOptions) -> "HalfDeformations":
        """Find the modes of a half, shrunk as a reconstruction shrinks them if that is asked for."""
        run = images.run
        chosen = ReconstructOptions(shrink=options.shrink, seed=options.seed)
        modes, support = half_modes(run, half, FullImages(run, images.device), chosen)
        factors = torch.ones(len(modes)) if support is None else support.factors[support.factors > 0]
        points = run.models[half - 1].consensus_positions
        region = deforming_region(points, images.box, images.pixel_size, chosen.region_radius)
        return cls(half, replace(modes, coordinates=modes.coordinates[images.rows]), factors, region)

    def coordinates(self, model, latents: torch.Tensor) -> torch.Tensor:
        """Return the (b, K) coordinates of (b, d) latents."""
        points = model.consensus_positions
        solver = torch.linalg.pinv(self.modes.field.fields(points).flatten(1))
        evaluate = ConsensusField(model).evaluator(points)
        found = [evaluate(part).flatten(1) @ solver for part in latents.split(_BATCH)]
        return torch.cat(found) * self.factors.to(found[0])

    def with_coordinates(self, coordinates: torch.Tensor) -> Modes:
        """Return the modes with other coordinates."""
        return replace(self.modes, coordinates=coordinates)


def pixel_shares(images: ControlImages, seed: int) -> torch.Tensor:
    """Return (n, box, box//2+1) bool: a random half of each image's Fourier pixels."""
    return random_pixels(len(images), images.box, torch.Generator().manual_seed(seed))


@torch.no_grad()
def split_coordinates(
    images: ControlImages, deformations: HalfDeformations, places: torch.Tensor, share: torch.Tensor, progress=None
) -> torch.Tensor:
    """Return (n, K) coordinates of which those of `places` were inferred from a share of their Fourier pixels alone."""
    model = images.run.models[deformations.half - 1]
    starts = model.latent_starts(len(places))
    latents = infer_latents(
        model, images.training, places, starts, _STEPS, share[places], integrate=True, progress=progress
    ).latents
    coordinates = deformations.modes.coordinates.clone()
    coordinates[places.to(coordinates.device)] = deformations.coordinates(model, latents)
    return coordinates


def reconstruct(
    data: ParticleData, places: torch.Tensor, modes: Modes, region: torch.Tensor, denominator=None, progress=None
) -> HalfReconstruction:
    """Sum the backprojections of particles."""
    return HalfReconstruction.of(data, places, modes, region, _BATCH, progress, denominator=denominator)


def maps_of(summed: HalfReconstruction) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the unfiltered maps with and without deformation."""
    return summed.backprojected(MIN_REGULARISATION), summed.backprojected(MIN_REGULARISATION, deformed=False)


def wiener(volume: torch.Tensor, fsc: torch.Tensor) -> torch.Tensor:
    """Return a half-map weighted by its signal: by the (box//2+1,) FSC of the half-maps up to its first zero."""
    curve = fsc.nan_to_num(nan=0.0).clamp(0, 1)
    curve[0] = 1
    curve = curve * (curve > 0).int().cumprod(0)
    return filter_volume(volume, expand_shells(curve, len(volume), 3))


def misfits(
    data: ParticleData, places: torch.Tensor, volume: torch.Tensor, region: torch.Tensor, modes: Modes | None
) -> torch.Tensor:
    """Return (b,) minus log-likelihoods (up to a constant) of images under a map moved by each one's deformation.

    With the transfer functions of `data` masked, only the Fourier pixels that it has count.
    """
    field, coordinates = (None, None) if modes is None else (modes.field, modes.coordinates)
    operator = DeformedProjection(data, region, field, coordinates)
    return 0.5 * operator.residuals(volume[operator.shape], places, _BATCH).cpu()


@torch.no_grad()
def overlaps(
    data: ParticleData, places: torch.Tensor, volume: torch.Tensor, region: torch.Tensor, modes: Modes | None
) -> torch.Tensor:
    """Return (b,) each image's share of the product of a volume and the sum of backprojections, <y, C P f> / Sigma."""
    field, coordinates = (None, None) if modes is None else (modes.field, modes.coordinates)
    operator = DeformedProjection(data, region, field, coordinates)
    values = volume[operator.shape]
    weights = data.weights * plane_multiplicity(data.box, data.device) / data.box**2
    found = []
    for part in places.split(_BATCH):
        predicted = operator.project(values, part) * data.transfer(part)
        found.append(((data.transforms(part) * predicted.conj()).real * weights).sum((1, 2)))
    return torch.cat(found).cpu()


def per_image(values: np.ndarray, images: ControlImages, places: torch.Tensor) -> np.ndarray:
    """Return (..., images) means of (..., b) values over rows that show one image: they share its noise."""
    _, index, counts = images.particles.image_groups[places].unique(return_inverse=True, return_counts=True)
    sums = np.zeros((*values.shape[:-1], len(counts)))
    np.add.at(sums, (..., index.numpy()), values)
    return sums / counts.numpy()


def permuted(coordinates: torch.Tensor, places: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return (n, K) coordinates of which those of `places` are permuted among them."""
    order = places[torch.randperm(len(places), generator=generator)]
    mixed = coordinates.clone()
    mixed[places.to(coordinates.device)] = coordinates[order.to(coordinates.device)]
    return mixed


def frequencies(images: ControlImages) -> list[float]:
    """Return the spatial frequency (1/A) of every shell."""
    return (np.arange(images.box // 2 + 1) / (images.box * images.pixel_size)).tolist()


def plain(figures: dict) -> dict:
    """Return figures as JSON has them."""
    return {name: value if isinstance(value, (int, list, dict)) else float(value) for name, value in figures.items()}


def molecule_mask(run: Run, box: int, pixel_size: float) -> torch.Tensor:
    """Return a (box, box, box) soft mask around the Gaussians of both halves."""
    gaussians = np.concatenate([model.consensus_positions.cpu().numpy() for model in run.models])
    return torch.from_numpy(masks(gaussians, np.zeros(len(gaussians), dtype=int), 1, box, pixel_size)[0])


def moving_mask(run: Run, box: int, pixel_size: float) -> torch.Tensor:
    """Return a (box, box, box) soft mask around the Gaussians that move, nearer to them than to those that rest."""
    motion = np.asarray(run.summary["point_motion"])
    moving = motion > _MOVING * np.quantile(motion, _MOST_MOBILE)
    gaussians = np.concatenate([model.consensus_positions.cpu().numpy() for model in run.models])
    labels = moving[cKDTree(run.motions.points.numpy()).query(gaussians)[1]].astype(int)
    # Where nothing rests there is one part.
    parts = masks(gaussians, np.where(labels.all(), 0, labels), 1 + int(not labels.all()), box, pixel_size)
    return torch.from_numpy(parts[-1])
