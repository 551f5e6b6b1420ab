"""Maps of some of a run's particles for controls, and how well such maps explain images.

Controls use images at the working box of training: the deformations contain nothing finer.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from dynamight_core.analysis.domain_files import domain_masks
from dynamight_core.analysis.molecule import all_gaussians
from dynamight_core.groups import current_group
from dynamight_core.image_series import ImageSeries, images_of, per_particle
from dynamight_core.imaging.backprojection import ParticleData, filter_volume
from dynamight_core.imaging.fourier import expand_shells, plane_multiplicity
from dynamight_core.imaging.modes import Modes
from dynamight_core.model.half import ConsensusField
from dynamight_core.model.motions import moving_points
from dynamight_core.options import ControlOptions, ReconstructOptions
from dynamight_core.particles.cache import ImageCache
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.preprocess import Preprocessing
from dynamight_core.reconstruction.deformation import deforming_region, half_modes, supported
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.least_squares import DeformedProjection
from dynamight_core.run import Run
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.inference import infer_latents, random_pixels

# Steps of latent inference, as for the support of the modes.
_STEPS = 4
_BATCH = 32


class ControlImages:
    """Some of a run's particles with their images at the working box.

    Parameters
    ----------
    run
        finished and summarised.
    rows
        (n,) of the run's particles. All other indices count from 0 in this order.
    device
        of the computation.
    progress
        takes the number of images read and the total.
    """

    def __init__(self, run: Run, rows: torch.Tensor, device: torch.device, progress=None):
        self.run, self.rows, self.device = run, rows, device
        self.halves, self.validation = run.halves[rows], run.validation[rows]
        for model in run.models:
            model.to(device)
        self.box, self.pixel_size = run.models[0].box, run.models[0].pixel_size
        inputs = run.config.inputs
        preprocessing = Preprocessing(
            self.box, inputs.particle_diameter, invert=inputs.invert_contrast, normalise=inputs.normalise
        ).with_set_noise(ImageReader(run.particles), run.halves, run.config.train.seed)
        self.particles = run.particles.subset(rows.numpy())
        self.matrices = self.particles.matrices
        self.series = self.particles.series
        chosen = images_of(run.particles.series, rows)
        reader, own = ImageReader(self.particles), preprocessing.of(chosen.numpy())
        cache = ImageCache(reader, own, device, inputs.storage, run.path, progress)
        self.training = self.with_images(cache)
        self._deformations: dict[tuple[bool, int], list[HalfDeformations]] = {}

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self.rows)

    def with_images(self, images: Any) -> TrainingImages:
        """Return training images whose ``images(numbers)`` are those of `images`."""
        ctf = self.particles.ctf
        return TrainingImages(images, ctf, self.matrices, self.box, self.pixel_size, self.device, self.series)

    def data(self, half: int, pixels: torch.Tensor | None = None, images=None) -> ParticleData:
        """Return the particles as data of a reconstruction, with the noise spectrum of a half-set's model.

        Parameters
        ----------
        half
            1 or 2.
        pixels
            (n, box, box//2+1) bool: the Fourier pixels to use in each image of a particle; all if None.
        images
            function that returns (b, box, box) images, to replace the particles' own.
        """
        power = self.run.models[half - 1].noise_power

        def transfer(indices: torch.Tensor) -> torch.Tensor:
            whole = self.training.transfer(indices)
            if pixels is None:
                return whole
            chosen = indices if self.series is None else self.series.owner[indices]
            return whole * pixels[chosen].to(whole.device)

        return ParticleData(
            images or self.training.images,
            transfer,
            self.matrices,
            self.box,
            self.pixel_size,
            self.box**2 / power,
            self.device,
            self.series,
        )

    def deformations(self, options: ControlOptions) -> list["HalfDeformations"] | None:
        """Return the deformations of both half-sets, None if no mode of motion is used."""
        chosen = options.shrink, options.seed
        if chosen not in self._deformations:
            self._deformations[chosen] = [HalfDeformations.of(self, half, options) for half in (1, 2)]
        halves = self._deformations[chosen]
        return halves if any(len(deformations.modes) for deformations in halves) else None

    def chosen(self, half: int, maximum: int, seed: int, validation: bool | None = None) -> torch.Tensor:
        """Return up to `maximum` random particles of a half-set; with `validation`, only those (not) held out."""
        mine = self.halves == half
        if validation is not None:
            mine &= self.validation == validation
        indices = torch.where(mine)[0]
        generator = torch.Generator().manual_seed(seed)
        return indices[torch.randperm(len(indices), generator=generator)[:maximum]].sort().values

    def random_halves(self, seed: int) -> torch.Tensor:
        """Return an (n, box, box//2+1) mask of a random half of each image's Fourier pixels."""
        return random_pixels(len(self), self.box, torch.Generator().manual_seed(seed))

    def per_image(self, values: np.ndarray, indices: torch.Tensor) -> np.ndarray:
        """Return (..., images) means of (..., b) values over the rows of one image, which share its noise."""
        _, index, counts = self.particles.copies[indices].unique(return_inverse=True, return_counts=True)
        sums = np.zeros((*values.shape[:-1], len(counts)))
        np.add.at(np.moveaxis(sums, -1, 0), index.numpy(), np.moveaxis(values, -1, 0))
        return sums / counts.numpy()

    @property
    def frequencies(self) -> list[float]:
        """Spatial frequency (1/A) of every shell."""
        return (np.arange(self.box // 2 + 1) / (self.box * self.pixel_size)).tolist()

    def molecule_mask(self) -> torch.Tensor:
        """Return a (box, box, box) soft mask around the Gaussians of both half-sets."""
        gaussians = all_gaussians(self.run)
        return self._mask(gaussians, np.zeros(len(gaussians), dtype=int), 1)

    def moving_mask(self) -> torch.Tensor:
        """Return a (box, box, box) soft mask of the moving part: nearer to Gaussians that move than to others."""
        moves, gaussians = moving_points(torch.tensor(self.run.summary["point_motion"])), all_gaussians(self.run)
        labels = moves.numpy()[cKDTree(self.run.motions.points.numpy()).query(gaussians)[1]].astype(int)
        # If all Gaussians move, there is only one part.
        return self._mask(gaussians, np.where(labels.all(), 0, labels), 1 + int(not labels.all()))

    def _mask(self, gaussians: np.ndarray, labels: np.ndarray, n_parts: int) -> torch.Tensor:
        """Return the soft mask of the last of the parts that the labels of (p, 3) Gaussians are."""
        return torch.from_numpy(domain_masks(gaussians, labels, n_parts, self.box, self.pixel_size)[-1]).to(self.device)


def reason_for_no_motion(run: Run, options: ControlOptions) -> str:
    """Return in words why no mode of motion is used."""
    if not options.shrink:
        return "The run learned no motion"
    if not supported(run):
        return "The verdict on the run is that the images do not support its motion"
    return "Held-out images support no motion"


@dataclass
class HalfDeformations:
    """The deformations of a half-set's decoder, for a control.

    Parameters
    ----------
    half
        1 or 2.
    modes
        with the (n, K) coordinates of the control's particles.
    factors
        (K,) weights of the modes.
    region
        (box, box, box) weights of the displacement.
    """

    half: int
    modes: Modes
    factors: torch.Tensor
    region: torch.Tensor

    @classmethod
    def of(cls, images: ControlImages, half: int, options: ControlOptions) -> "HalfDeformations":
        """Return the modes of a half-set, down-weighted as in a reconstruction with the option `shrink`."""
        run = images.run
        chosen = ReconstructOptions(shrink=options.shrink, seed=options.seed)
        modes, support = half_modes(run, half, FullImages(run, images.device), chosen)
        factors = torch.ones(len(modes)) if support is None else support.factors[support.factors > 0]
        points = run.models[half - 1].consensus_positions
        region = deforming_region(points, images.box, images.pixel_size, chosen.region_radius)
        field = modes.field.remembered()
        return cls(half, replace(modes, field=field, coordinates=modes.coordinates[images.rows]), factors, region)

    def coordinates(self, model, latents: torch.Tensor) -> torch.Tensor:
        """Return the (b, K) coordinates of (b, d) latents."""
        points = model.consensus_positions
        solver = torch.linalg.pinv(self.modes.field.fields(points).flatten(1))
        evaluate = ConsensusField(model).evaluator(points)
        parts = [evaluate(part).flatten(1) @ solver for part in latents.split(_BATCH)]
        return torch.cat(parts) * self.factors.to(parts[0])

    @torch.no_grad()
    def split(self, images: ControlImages, indices: torch.Tensor, pixels: torch.Tensor, progress=None) -> torch.Tensor:
        """Return (n, K) coordinates in which those of `indices` are inferred from the given Fourier pixels only."""
        model = images.run.models[self.half - 1]
        starts = model.latent_starts(len(indices))
        latents = infer_latents(
            model, images.training, indices, starts, _STEPS, pixels[indices], integrate=True, progress=progress
        ).latents
        coordinates = self.modes.coordinates.clone()
        coordinates[indices.to(coordinates.device)] = self.coordinates(model, latents)
        return coordinates

    def with_coordinates(self, coordinates: torch.Tensor) -> Modes:
        """Return the modes with other coordinates."""
        return replace(self.modes, coordinates=coordinates)

    def reconstruct(
        self, data: ParticleData, indices: torch.Tensor, progress=None, modes: Modes | None = None, known=None
    ) -> HalfReconstruction:
        """Return the reconstruction of particles, with other modes and a `known` one of these particles if given."""
        modes = self.modes if modes is None else modes
        return HalfReconstruction.of(data, indices, modes, self.region, progress=progress, known=known)


def maps_of(summed: HalfReconstruction) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the unfiltered maps with and without deformation."""
    return summed.backprojected(MIN_REGULARISATION), summed.backprojected(MIN_REGULARISATION, deformed=False)


def wiener(volume: torch.Tensor, fsc: torch.Tensor) -> torch.Tensor:
    """Return a half-map weighted by the (box//2+1,) FSC of the half-maps, up to its first zero."""
    curve = fsc.nan_to_num(nan=0.0).clamp(0, 1)
    curve[0] = 1
    curve = curve * (curve > 0).int().cumprod(0)
    return filter_volume(volume, expand_shells(curve, len(volume), 3))


def misfits(
    data: ParticleData, indices: torch.Tensor, volume: torch.Tensor, region: torch.Tensor, modes: Modes | None
) -> torch.Tensor:
    """Return the (b,) negative log-likelihoods (up to a constant) of particles' images, given a deformed map.

    Only the Fourier pixels of `data` count. Without modes, the map is rigid.
    """
    operator, images, mine = _of_images(data, indices, region, modes)
    return per_particle(mine, 0.5 * operator.residuals(volume[operator.shape], images, _BATCH).cpu())


def _of_images(
    data: ParticleData, indices: torch.Tensor, region: torch.Tensor, modes: Modes | None
) -> tuple[DeformedProjection, torch.Tensor, ImageSeries | None]:
    """Return the projection of a map that particles deform, and the images of (b,) particles with their series."""
    moved = None if modes is None else modes.of_images(data.series)
    field, coordinates = (None, None) if moved is None else (moved.field, moved.coordinates)
    operator = DeformedProjection(data, region, field, coordinates)
    if data.series is None:
        return operator, indices, None
    images, index = data.series.images(indices)
    return operator, images, ImageSeries(index)


@torch.no_grad()
def overlaps(
    data: ParticleData, indices: torch.Tensor, volume: torch.Tensor, region: torch.Tensor, modes: Modes | None
) -> torch.Tensor:
    """Return (b,) contributions <y, C P f> / Sigma of particles to the product of a map f and their backprojection."""
    operator, images, mine = _of_images(data, indices, region, modes)
    values = volume[operator.shape]
    weights = data.weights * plane_multiplicity(data.box, data.device) / data.box**2
    group, products = current_group(), [values.new_empty(0)]
    for part in group.split(images, _BATCH):
        predicted = operator.project(values, part) * data.transfer(part)
        products.append(((data.transforms(part) * predicted.conj()).real * weights).sum((1, 2)))
    return per_particle(mine, group.gather(torch.cat(products)).cpu())


def permuted(coordinates: torch.Tensor, indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return (n, K) coordinates in which those of `indices` are permuted."""
    order = indices[torch.randperm(len(indices), generator=generator)]
    result = coordinates.clone()
    result[indices.to(coordinates.device)] = coordinates[order.to(coordinates.device)]
    return result
