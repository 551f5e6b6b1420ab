"""FSC, masks, local resolution and the maps of a reconstruction."""

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.backprojection import ParticleData
from dynamight_core.imaging.fourier import expand_shells, fourier_to_volume, lowpass_volume, shells, volume_to_fourier
from dynamight_core.imaging.masks import sphere
from dynamight_core.imaging.modes import find_modes
from dynamight_core.reconstruction import fsc
from dynamight_core.reconstruction.fsc import (
    HalfMapFsc,
    fourier_shell_correlation,
    half_map_fsc,
    local_resolution,
    resolution_at,
    soft_mask,
    write_fsc_star,
)
from dynamight_core.reconstruction.half_map import HalfReconstruction
from dynamight_core.reconstruction.maps import final_map, guinier_b_factor, sharpen, write_reconstruction
from dynamight_core.simulate.measures import HingeField
from tests.support.hinge_images import BOX, PIXEL, noise, wbp


@pytest.mark.parametrize("box", [16, 17])
def test_fsc_of_known_maps(box):
    a, b = noise(box, 0), noise(box, 1)
    assert torch.allclose(fourier_shell_correlation(a, a), torch.ones(box // 2 + 1))
    assert torch.allclose(fourier_shell_correlation(a, -3 * a), -torch.ones(box // 2 + 1))
    assert fourier_shell_correlation(a, b)[2:].abs().max() < 0.5
    slow = np.fft.fftn(a.numpy()), np.fft.fftn(b.numpy())
    k = np.fft.fftfreq(box) * box
    radius = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2))
    chosen = radius == 5
    cross = (slow[0] * slow[1].conj())[chosen].sum().real
    power = np.sqrt((abs(slow[0][chosen]) ** 2).sum() * (abs(slow[1][chosen]) ** 2).sum())
    assert float(fourier_shell_correlation(a, b)[5]) == pytest.approx(cross / power, abs=1e-5)


def test_fsc_of_signal_and_noise_follows_the_ratio_of_their_powers():
    signal, n1, n2 = noise(48, 0), noise(48, 1), noise(48, 2)
    curve = fourier_shell_correlation(signal + n1, signal + n2)
    assert float(curve[8:].mean()) == pytest.approx(0.5, abs=0.02)


def test_an_empty_shell_correlates_nothing():
    flat = torch.ones(8, 8, 8)
    curve = fourier_shell_correlation(flat, flat)
    assert curve[0] == 1 and torch.equal(curve[1:], torch.zeros(4))


def test_maps_of_different_boxes_are_refused():
    with pytest.raises(InputError, match="8 and 16"):
        fourier_shell_correlation(torch.ones(8, 8, 8), torch.ones(16, 16, 16))


def test_resolution_is_where_the_curve_crosses():
    curve = torch.tensor([1.0, 1.0, 0.9, 0.5, 0.1, 0.6, 0.0])
    assert resolution_at(curve, 12, 2.0, 0.3) == pytest.approx(24 / 3.5)
    assert resolution_at(curve, 12, 2.0, 0.5) == pytest.approx(24 / 3)
    assert resolution_at(torch.ones(7), 12, 2.0) == 4.0
    assert resolution_at(torch.zeros(7), 12, 2.0) == float("inf")
    assert resolution_at(torch.full((7,), float("nan")), 12, 2.0) == float("inf")
    # shell 0 is the mean of the map and says nothing
    assert resolution_at(torch.tensor([-1.0, 1, 1, 1, 1, 1, 1]), 12, 2.0) == 4.0


def blob(box, seed, radius=6.0):
    axis = torch.arange(box) - box // 2
    r = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).float().sqrt()
    return lowpass_volume(noise(box, seed), 3.0, 9.0) * 3 * (r < radius) + 1.5 * (r < radius)


def test_phase_randomisation_removes_what_a_tight_mask_correlates():
    mask = (blob(32, 0).abs() > 1.0).float()
    curves = half_map_fsc(noise(32, 1), noise(32, 2), mask)
    assert float(curves.masked[4:].mean()) < 0.4
    constant = 5.0
    curves = half_map_fsc(noise(32, 1) + constant, noise(32, 2) + constant, mask)
    assert float(curves.masked[4:].mean()) > 0.4
    assert float(curves.corrected[4:].mean()) < 0.1


def test_corrected_curve_of_noise_lies_below_zero_as_often_as_above():
    mask = soft_mask(blob(32, 0, 9.0) + 0.01 * noise(32, 3), 3.0)
    curves = [half_map_fsc(noise(32, 2 * i), noise(32, 2 * i + 1), mask, i).corrected[8:] for i in range(10, 22)]
    curves = torch.stack(curves)
    assert abs(float(curves.mean())) < 3 * float(curves.mean(1).std()) / len(curves) ** 0.5
    assert 0.3 < float((curves < 0).float().mean()) < 0.7


def test_random_phases_in_a_small_mask_are_drawn_more_than_once(monkeypatch):
    mask, halves = (blob(32, 0, 4.0).abs() > 0.5).float(), (noise(32, 1), noise(32, 2))

    def change():
        first, second = (half_map_fsc(*halves, mask, seed).randomised[8:] for seed in (0, 1))
        return float((first - second).square().mean().sqrt())

    several = change()
    monkeypatch.setattr(fsc, "_MAX_DRAWS", 1)
    assert several < 0.6 * change()


def test_correction_keeps_what_the_halves_share():
    signal = blob(32, 0, 9.0)
    mask = soft_mask(signal + 0.01 * noise(32, 3), 3.0)
    curves = half_map_fsc(signal + 0.3 * noise(32, 1), signal + 0.3 * noise(32, 2), mask)
    shared = fourier_shell_correlation(signal + 0.3 * noise(32, 1), signal + 0.3 * noise(32, 2), mask)
    assert torch.equal(curves.masked, shared)
    assert float((curves.masked - curves.corrected)[:8].max()) < 0.1


def test_automatic_mask_holds_the_molecule_and_no_solvent(hinge):
    t = hinge.truth
    clean = t.true_map()
    noisy = clean + 0.2 * float(clean.max()) * noise(BOX, 0)
    mask = soft_mask(noisy, PIXEL)
    assert 0 <= float(mask.min()) and float(mask.max()) == 1
    molecule = torch.maximum(t.domain_mask(0), t.domain_mask(1)) > 0.5
    assert float(mask[molecule].mean()) > 0.9
    assert float(mask[~sphere(BOX, radius=BOX / 2 - 1)].max()) == 0
    assert float(mask.mean()) < 0.5


def test_a_map_without_density_gives_no_mask():
    with pytest.raises(InputError, match="mask"):
        soft_mask(0.01 * noise(16, 0), 3.0, threshold=5.0)


def test_fsc_star_has_relions_columns_and_extra_ones(tmp_path):
    curve = torch.linspace(1, 0, 17)
    curves = HalfMapFsc(curve, curve, 0 * curve, curve)
    mask = torch.zeros(32, 32, 32)
    mask[:16, :16, :16] = 1
    more = {"rlnUnfilteredMapHalf1": "half1_unfil.mrc", "rlnBfactorUsedForSharpening": -75.0}
    write_fsc_star(tmp_path / "fsc.star", curves, 3.0, mask, {"dynFscModelConsensus": curve / 2}, more)
    blocks = starfile.read(tmp_path / "fsc.star", always_dict=True)
    table = blocks["fsc"]
    assert table["rlnSpectralIndex"].tolist() == list(range(17))
    assert table["rlnAngstromResolution"][4] == pytest.approx(32 * 3.0 / 4)
    assert table["rlnResolution"][4] == pytest.approx(4 / 96, abs=1e-7)
    for name in ("Corrected", "UnmaskedMaps", "MaskedMaps"):
        assert np.allclose(table[f"rlnFourierShellCorrelation{name}"], curve, atol=1e-6)
    # An eighth of the box is mask: f = 0.476 * 8.
    part = 3.808 * curve / (1 + 2.808 * curve)
    assert np.allclose(table["rlnFourierShellCorrelationParticleMaskFraction"], part, atol=1e-5)
    assert float(blocks["general"]["rlnParticleBoxFractionSolventMask"]) == pytest.approx(3.808, abs=1e-4)
    assert {name: blocks["general"][name] for name in more} == more
    # The curve falls by a sixteenth a shell: below 0.8 from shell 4 on.
    assert float(blocks["general"]["rlnRandomiseFrom"]) == pytest.approx(32 * 3.0 / 4)
    assert np.allclose(table["dynFscModelConsensus"], curve / 2, atol=1e-6)
    assert float(blocks["general"]["rlnFinalResolution"]) == pytest.approx(resolution_at(curve, 32, 3.0), abs=1e-3)


def test_final_map_keeps_good_shells_and_drops_the_rest():
    signal = noise(16, 0)
    curve = torch.ones(9)
    curve[5:] = 0
    out = volume_to_fourier(final_map(signal, signal, curve))
    expected = volume_to_fourier(signal)
    kept = shells(16, 3) < 5
    assert torch.allclose(out[kept], expected[kept], atol=1e-3)
    assert float(out[~kept].abs().max()) < 1e-3


def test_final_map_is_nearer_to_the_truth_than_the_average():
    signal = fourier_to_volume(
        volume_to_fourier(noise(32, 0)) * torch.exp(-expand_shells(torch.arange(17.0), 32, 3) / 4), 32
    )
    half1, half2 = signal + 0.3 * noise(32, 1), signal + 0.3 * noise(32, 2)
    final = final_map(half1, half2, fourier_shell_correlation(half1, half2))
    assert (final - signal).norm() < 0.8 * ((half1 + half2) / 2 - signal).norm()


def test_local_resolution_follows_where_the_halves_agree():
    box = 64
    signal, halves = 2 * noise(box, 0), []
    left = torch.arange(box) < box // 2
    for seed in (1, 2):
        # Signal to 8 A on one side, to 20 A on the other, in white noise.
        sharp, blurred = lowpass_volume(signal, 2.0, 8.0), lowpass_volume(signal, 2.0, 20.0)
        halves.append(torch.where(left, sharp, blurred) + 0.5 * noise(box, seed))
    local = local_resolution(*halves, 2.0)
    inside = slice(16, 48)
    assert float(local[inside, inside, 12:20].median()) == pytest.approx(8, rel=0.25)
    assert float(local[inside, inside, 44:52].median()) == pytest.approx(20, rel=0.35)
    assert float(local_resolution(noise(box, 1), noise(box, 2), 2.0)[inside, inside, inside].median()) > 20


def test_sharpening_undoes_a_known_b_factor():
    signal = noise(48, 0)
    blurred = sharpen(signal, 1.5, 150.0)
    assert guinier_b_factor(blurred, 1.5, 3.5) == pytest.approx(-150, rel=0.1)
    assert torch.allclose(sharpen(blurred, 1.5, -150.0), signal, atol=1e-3)
    assert guinier_b_factor(blurred, 1.5, 12.0) == 0.0


def test_pure_noise_reconstructed_through_any_deformation_claims_no_resolution(hinge):
    generator = torch.Generator().manual_seed(3)
    t = hinge.truth
    images = torch.randn(len(t), BOX, BOX, generator=generator)
    data = ParticleData(images.__getitem__, hinge.transfer.__getitem__, hinge.matrices, BOX, PIXEL)
    modes = find_modes(HingeField(t), t.angles, t.molecule.positions, PIXEL)
    region = sphere(BOX, radius=12).float()
    halves = [torch.where(t.half == number)[0] for number in (1, 2)]
    pair = [HalfReconstruction.of(data, rows, modes, region) for rows in halves]
    mask = torch.maximum(t.domain_mask(0), t.domain_mask(1))
    solved = [half.least_squares(1.0, other, max_steps=2)[0] for half, other in zip(pair, halves[::-1], strict=True)]
    for maps in ([half.backprojected(1.0) for half in pair], solved):
        curve = half_map_fsc(*maps, mask).corrected[1:]
        # Fourier voxels of a shell, as many fewer as the mask is smaller than the box; half of them are mirror images.
        voxels = 4 * torch.pi * torch.arange(1, BOX // 2 + 1).square() * float(mask.square().mean()) / 2
        assert int((curve.abs() > 3 / voxels.clamp(min=1).sqrt()).sum()) <= 1


def test_a_reconstruction_is_written_with_the_names_that_others_read(hinge, tmp_path):
    halves = [wbp(hinge.sums(hinge.everything[hinge.truth.half == number])) for number in (1, 2)]
    files = write_reconstruction(tmp_path / "reconstruction", *halves, PIXEL)
    names = {path.name for path in (tmp_path / "reconstruction").iterdir()}
    assert names == {"half1_unfil.mrc", "half2_unfil.mrc", "map.mrc", "map_sharpened.mrc", "fsc.star", "mask.mrc"}
    stored, pixel = read_map(files.half_maps[1])
    assert pixel == pytest.approx(PIXEL) and np.allclose(stored, halves[1], atol=1e-6)
    # half-maps keep the solvent's noise, in the corners of the box as well
    assert stored[:4, :4, :4].std() > 0.1 * stored.std()
    with mrcfile.open(files.sharpened, header_only=True) as mrc:
        assert any(label.startswith("SHARPENED") for label in mrc.get_labels())
    with mrcfile.open(files.final, header_only=True) as mrc:
        assert any("not sharpened" in label for label in mrc.get_labels())
    assert 2 * PIXEL <= files.resolution < 40
    final, _ = read_map(files.final)
    assert hinge.mean_fsc(torch.from_numpy(final), 0) > hinge.mean_fsc(halves[0], 0)
