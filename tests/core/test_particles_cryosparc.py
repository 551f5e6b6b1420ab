"""Files of cryoSPARC: read as RELION files of the same particles, and written so that cryoSPARC reads them."""

import numpy as np
import pytest
import torch
import yaml

from dynamight_core.analysis.select import write_rows
from dynamight_core.errors import InputError
from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.poses import rotation_matrices
from dynamight_core.judging.summary import summarise
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import describe, read_particles, write_particles
from dynamight_core.particles.relatives import find_relatives
from dynamight_core.reporter import QUIET
from dynamight_core.simulate.dataset import SimulateOptions, simulate
from dynamight_core.training.stage import train
from tests.support.cryosparc_files import fields_of, from_relion, records, save

WAVELENGTH = 0.0250793  # A, at 200 kV


@pytest.fixture
def files(particle_files):
    particle_files.stack()
    return particle_files


def read(files, **fields):
    return read_particles(save(files.folder / "J7_particles.cs", records(files, **fields)))


def test_a_cs_file_says_what_the_relion_file_of_the_same_particles_says(files):
    relion, ours = read_particles(files.star()), read(files)
    assert (ours.box, ours.premultiplied) == (relion.box, relion.premultiplied)
    assert ours.pixel_size == pytest.approx(relion.pixel_size, rel=1e-7)
    # Single precision of the .cs file, and the six digits of RELION's.
    assert torch.allclose(rotation_matrices(ours.angles), rotation_matrices(relion.angles), atol=1e-6)
    assert torch.allclose(ours.shifts, relion.shifts, atol=2e-6)
    assert torch.equal(ours.halves, relion.halves)
    assert torch.equal(ours.image_groups, relion.image_groups)
    assert [ours.image_name(row) for row in range(12)] == [relion.image_name(row) for row in range(12)]
    assert torch.allclose(evaluate_ctf(ours.ctf, 16, 2.0), evaluate_ctf(relion.ctf, 16, 2.0), atol=1e-5)
    with ImageReader(ours) as mine, ImageReader(relion) as theirs:
        assert torch.equal(mine.read(slice(None)), theirs.read(slice(None)))


def test_rotation_vectors_are_read_as_other_programs_read_them(files):
    # From the tests of pyem (util/tests/TestConvert.py), whose conversion is in wide use.
    vector = np.tile([-2.14932622394, 0.746829503588, -0.487367610323], (12, 1))
    angles = read(files, alignments3D__pose=vector).angles[0]
    assert torch.allclose(angles, torch.tensor([0.7844259044, 2.2296280677, -1.6883258657]), atol=1e-5)


def test_shifts_are_in_pixels_of_the_refinement(files):
    binned = read(files, alignments3D__shift=files.shifts / 4.0, alignments3D__psize_A=np.full(12, 4.0))
    assert torch.allclose(binned.shifts, torch.from_numpy(files.shifts).float(), atol=2e-6)


def test_dark_particles_are_inverted(files):
    dark = read(files, blob__sign=np.where(np.arange(12) < 5, -1.0, 1.0))
    with ImageReader(dark) as reader:
        images = reader.read(slice(None)).numpy()
    assert np.array_equal(images[:5], -files.pixels[:5])
    assert np.array_equal(images[5:], files.pixels[5:])
    write_particles(files.folder / "out.star", dark, {})
    assert torch.equal(read_particles(files.folder / "out.star").contrast, dark.contrast)


def test_one_half_set_alone_is_none(files):
    assert not read(files, alignments3D__split=np.zeros(12, np.uint32)).halves.any()


def test_aberrations_have_the_phases_of_cryosparc(files):
    tilt, trefoil = np.array([9000.0, -5000.0]), np.array([2e4, 4e4])
    tetra, shift = np.array([4e5, -3e5, 8e5, 16e5]), np.array([1.5, -0.5])
    many = {"ctf__tilt_A": tilt, "ctf__trefoil_A": trefoil, "ctf__tetra_A": tetra, "ctf__shift_A": shift}
    fields = {name: np.tile(values, (12, 1)) for name, values in many.items()}
    plain, aberrant = read(files), read(files, **fields)
    assert torch.allclose(aberrant.shifts, plain.shifts - torch.from_numpy(shift).float(), atol=1e-5)
    k = np.stack(np.meshgrid(np.fft.rfftfreq(16, 2.0), np.fft.fftfreq(16, 2.0)), -1)
    s, t = np.hypot(*np.moveaxis(k, -1, 0)), np.arctan2(k[..., 1], k[..., 0])
    odd = -2 * np.pi * WAVELENGTH**2 * s**2 * (k @ tilt)
    odd -= 2 * np.pi / 3 * WAVELENGTH**2 * s**3 * (trefoil[0] * np.cos(3 * t) + trefoil[1] * np.sin(3 * t))
    even = 2 * np.pi * (tetra[0] * np.cos(2 * t) + tetra[1] * np.sin(2 * t))
    even = WAVELENGTH**3 * s**4 * (even + np.pi / 2 * (tetra[2] * np.cos(4 * t) + tetra[3] * np.sin(4 * t)))
    without = evaluate_ctf(plain.ctf[:1], 16, 2.0)[0].numpy()
    quarter = plain.ctf[:1]
    quarter.phase_shift = quarter.phase_shift + torch.pi / 2
    cosine = evaluate_ctf(quarter, 16, 2.0)[0].numpy()
    expected = (without * np.cos(even) - cosine * np.sin(even)) * np.exp(1j * odd)
    found = evaluate_ctf(aberrant.ctf[:1], 16, 2.0)[0].numpy()
    inside = s < 0.245
    assert np.abs(even).max() > 0.3
    assert np.abs(odd).max() > 0.3
    assert np.allclose(found[inside], expected[inside], atol=2e-4)


def test_picks_and_filaments_tell_relatives(files):
    fields = {
        "location__micrograph_path": np.array([b"J2/mic.mrc"] * 12),
        "location__micrograph_shape": np.tile(np.array([4000, 6000], np.uint32), (12, 1)),
        "location__micrograph_psize_A": np.full(12, 1.0),
        "location__center_x_frac": np.linspace(0.1, 0.9, 12),
        "location__center_y_frac": np.full(12, 0.25),
    }
    fields["location__center_x_frac"][7] = fields["location__center_x_frac"][3]
    particles = read(files, **fields)
    assert particles.table["rlnCoordinateX"].astype(float)[0] == 600
    assert (particles.table["rlnCoordinateY"].astype(float) == 3000).all()
    groups = find_relatives(particles, 30.0)
    assert groups[3] == groups[7]
    assert len(groups.unique()) == 11
    tubes = find_relatives(read(files, **fields, filament__filament_uid=np.arange(12) // 4 + 10**15), 0)
    assert len(tubes.unique()) == 3


def test_anisotropic_magnification_is_stored_less_the_identity(files):
    anisomag = np.tile([0.01, -0.002, 0.003, -0.004], (12, 1))
    matrix = read(files, ctf__anisomag=anisomag).ctf.magnification[0]
    assert torch.allclose(matrix, torch.tensor([[1.01, -0.002], [0.003, 0.996]]))


def test_fields_come_from_the_passthrough_file_beside_or_named(files):
    given = records(files)
    save(files.folder / "J7_particles.cs", fields_of(given, "alignments3D"))
    passthrough = fields_of(given[::-1], "blob", "ctf")
    save(files.folder / "J7_passthrough_particles.cs", passthrough)
    save(files.folder / "J8_passthrough_particles.cs", records(files, ctf__df1_A=np.full(12, 1.0)))
    whole = read(files)
    save(files.folder / "J7_particles.cs", fields_of(given, "alignments3D"))
    beside = read_particles(files.folder / "J7_particles.cs")
    assert torch.equal(beside.ctf.defocus_u, whole.ctf.defocus_u)
    assert [beside.image_name(i) for i in range(12)] == [whole.image_name(i) for i in range(12)]
    other = save(files.folder / "elsewhere" / "more.cs", passthrough)
    (files.folder / "J7_passthrough_particles.cs").unlink()
    named = read_particles(files.folder / "J7_particles.cs", passthrough=[other])
    assert torch.equal(named.ctf.defocus_u, whole.ctf.defocus_u)
    save(other, passthrough[:9])
    with pytest.raises(InputError, match="lacks 3 of the 12 particles"):
        read_particles(files.folder / "J7_particles.cs", passthrough=[other])
    with pytest.raises(InputError, match=r"--passthrough is for \.cs files"):
        read_particles(files.star(), passthrough=[other])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"alignments3D__pose": None},
            r"no field alignments3D/pose; give the particles of a 3D refinement.*--passthrough",
        ),
        ({"alignments3D__pose": None, "alignments3D_multi__pose": np.zeros((12, 2, 3))}, "several classes: refine one"),
        ({"ctf__df1_A": None}, "no field ctf/df1_A; give particles with estimated CTFs"),
        ({"alignments3D__split": np.arange(12)}, "has '3' in row 3 of column rlnRandomSubset"),
        ({"ctf__df1_A": np.full(12, np.nan)}, "has 'nan' in row 1 of column rlnDefocusU"),
        ({"ctf__cs_mm": np.zeros(12), "ctf__tilt_A": np.ones((12, 2))}, "beam tilt"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(files, fields, message):
    with pytest.raises(InputError, match=message):
        read(files, **fields)


def test_what_is_no_cs_file_is_refused(files):
    for content, message in ((b"text", "is not a .cs file"), (b"\x95CSDAT\x00", "is compressed; save it")):
        (files.folder / "x.cs").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_particles(files.folder / "x.cs")
    whole = save(files.folder / "x.cs", records(files)).read_bytes()
    (files.folder / "x.cs").write_bytes(whole[:-40])
    with pytest.raises(InputError, match="is damaged"):
        read_particles(files.folder / "x.cs")


def test_results_are_written_for_relion_and_for_cryosparc(files):
    files.stack("J1/more.mrcs")
    exported = read(
        files, stack=">J1/more.mrcs", blob__sign=np.full(12, -1.0), location__micrograph_path=["m.mrc"] * 12
    )
    rows = np.array([7, 2, 4])
    write_particles(
        files.folder / "out" / "some.star", exported.subset(rows), {"dynMotion1": np.array([0.5, -1.0, 2.0])}
    )
    star, cs = (read_particles(files.folder / "out" / f"some.{ending}") for ending in ("star", "cs"))
    for again in (star, cs):
        assert [again.image_name(i) for i in range(3)] == [exported.image_name(i) for i in rows]
        assert again.halves.tolist() == exported.halves[rows].tolist()
        assert torch.allclose(again.angles, exported.angles[rows], atol=1e-6)
        assert (again.contrast == -1).all()
    assert list(star.table["rlnImageName"]) == ["000008@J1/more.mrcs", "000003@J1/more.mrcs", "000005@J1/more.mrcs"]
    assert cs.records["uid"].tolist() == exported.records["uid"][rows].tolist()
    assert cs.records["dynamight/dynMotion1"].tolist() == [0.5, -1.0, 2.0]
    group = yaml.safe_load((files.folder / "out" / "some.csg").read_text())
    assert group["results"]["alignments3D"] == {"metafile": ">some.cs", "num_items": 3, "type": "particle.alignments3D"}
    assert set(group["results"]) == {"blob", "ctf", "alignments3D", "location"}


def test_description_names_cryosparc_and_contrast(files):
    text = "\n".join(describe(read(files, sign=-1.0)))
    assert "cryoSPARC (1 exposure group)" in text
    assert "6 and 6 particles (alignments3D/split)" in text
    assert "dark particles, which are inverted" in text


def test_a_run_of_a_cs_file_equals_that_of_the_star_file_with_its_digits(tmp_path):
    found = simulate(SimulateOptions(particles=200, box=32, pixel_size=6.0, snr=8.0, seed=1), tmp_path)
    cs = save(tmp_path / "J3_particles.cs", from_relion(found.particles))
    runs = []
    for particles in (cs, tmp_path / "first" / "particles.star"):
        inputs = InputOptions(star=str(particles), map=str(found.consensus))
        options = TrainOptions(n_gaussians=100, warm_up_epochs=1, epochs=1, refits=0, threads=1)
        trained = train(inputs, options, tmp_path / ("second" if runs else "first"), reporter=QUIET)
        runs.append(summarise(trained, reporter=QUIET))
    assert torch.equal(runs[0].latents, runs[1].latents)
    assert runs[0].table["rlnRandomSubset"].tolist() == runs[1].halves.tolist()
    chosen = write_rows(runs[0], tmp_path / "some.star", np.array([3, 5]))
    again = read_particles(chosen.with_suffix(".cs"))
    assert again.records["uid"].tolist() == [3 * 7 + 3, 5 * 7 + 3]
    assert again.records["dynamight/dynMotionRms"] == pytest.approx(runs[0].table["dynMotionRms"][[3, 5]])
    assert not (tmp_path / "second" / "particles.cs").exists()
