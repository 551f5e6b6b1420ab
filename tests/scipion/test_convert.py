"""Particles and volumes go to the engine and come back as they were, matched by id."""

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from pwem.constants import ALIGN_PROJ
from pwem.emlib.image import ImageHandler
from pwem.objects import (
    Acquisition,
    CTFModel,
    Particle,
    SetOfParticles,
    SetOfParticlesFlex,
    Transform,
    Volume,
    VolumeMask,
)
from pyworkflow.object import Integer
from relion.convert import readSetOfParticles, writeSetOfParticles

from dynamight_core.imaging.poses import rotation_matrices
from dynamight_core.particles.metadata import read_particles
from dynamight_scipion import convert
from dynamight_scipion.convert import ConversionError
from dynamight_scipion.convert.poses import matricesOfPoses, posesOfMatrices

PIXEL = 6.0


@pytest.fixture
def imported(simulated, tmp_path):
    """The simulated particles as a set, with everything that RELION's reader can keep."""
    particles = SetOfParticles(filename=str(tmp_path / "imported.sqlite"))

    def inPlace(particle, row):
        particle.setFileName(str(simulated.stack))

    readSetOfParticles(
        str(simulated.particles),
        particles,
        alignType=ALIGN_PROJ,
        extraLabels=["rlnOpticsGroup", "rlnMicrographName"],
        postprocessImageRow=inPlace,
    )
    particles.write()
    return particles


def rebuilt(particles, path, change=lambda particle: None, cls=SetOfParticles):
    """Return a copy of a set with every particle changed; a particle for which `change` gives False is dropped."""
    copied = cls(filename=str(path))
    copied.copyInfo(particles)
    copied.setHasCTF(particles.hasCTF())
    for particle in particles.iterItems():
        if change(particle) is not False:
            copied.append(particle)
    copied.write()
    return copied


def written(particles, folder, **kwargs):
    """Write a set and return the path of the STAR file."""
    convert.writeParticles(particles, str(folder / "particles.star"), str(folder / "stacks"), **kwargs)
    return folder / "particles.star"


def assert_same_particles(found, expected, rows=slice(None)):
    """Compare two `dynamight_core` Particles: poses, CTF with all aberrations, halves and images."""
    np.testing.assert_allclose(rotation_matrices(found.angles), rotation_matrices(expected.angles)[rows], atol=2e-6)
    np.testing.assert_allclose(found.shifts, expected.shifts[rows], atol=1e-5)
    for name, value in vars(found.ctf).items():
        np.testing.assert_allclose(value, getattr(expected.ctf, name)[rows], rtol=1e-6, atol=1e-6, err_msg=name)
    assert (found.halves == expected.halves[rows]).all()
    assert (found.box, found.pixel_size) == (expected.box, expected.pixel_size)


# ------------------------------------------------------------------ particles


def test_what_is_written_is_what_was_simulated(imported, simulated, tmp_path):
    assert convert.checkParticles(imported) == ([], [])
    found, truth = read_particles(written(imported, tmp_path)), read_particles(simulated.particles)
    assert truth.ctf.phase_shift.max() > 0.5
    assert truth.ctf.odd_zernike.abs().max() > 0
    assert truth.ctf.voltage.unique().tolist() == [200.0, 300.0]
    assert_same_particles(found, truth)
    assert found.frame.tolist() == truth.frame.tolist()
    assert found.stacks == truth.stacks


def test_poses_are_those_that_relions_writer_gives(imported, tmp_path):
    generator = np.random.default_rng(0)
    angles = generator.uniform(-180, 180, (len(imported), 3))
    angles[0], angles[1], angles[2] = (0, 0, 0), (30, 0, 40), (30, 180, 40)
    matrices = matricesOfPoses(*angles.T, *generator.normal(0, 5, (2, len(angles))), PIXEL)
    moved = rebuilt(
        imported,
        tmp_path / "moved.sqlite",
        lambda particle: particle.setTransform(Transform(matrices[particle.getObjId() - 1])),
    )
    relions = tmp_path / "relions.star"
    writeSetOfParticles(moved, str(relions), alignType=ALIGN_PROJ)
    found, expected = read_particles(written(moved, tmp_path)), read_particles(relions)
    np.testing.assert_allclose(rotation_matrices(found.angles), rotation_matrices(expected.angles), atol=2e-6)
    np.testing.assert_allclose(found.shifts, expected.shifts, atol=1e-4)
    np.testing.assert_allclose(
        rotation_matrices(torch.deg2rad(torch.from_numpy(angles))), rotation_matrices(found.angles), atol=2e-6
    )


def test_poses_and_scipions_matrices_are_each_others_inverse():
    generator = np.random.default_rng(1)
    rot, psi = generator.uniform(-180, 180, (2, 50))
    tilt = generator.uniform(0, 180, 50)
    given = (rot, tilt, psi, *generator.normal(0, 9, (2, 50)))
    np.testing.assert_allclose(posesOfMatrices(matricesOfPoses(*given, 1.7), 1.7), given, atol=1e-9)


def test_images_of_several_stacks_keep_their_index_and_their_id(imported, simulated, tmp_path):
    images = mrcfile.read(simulated.stack)
    order = np.random.default_rng(2).permutation(len(images))
    places = {}
    for number, part in enumerate(np.array_split(order, 3)):
        path = tmp_path / f"part{number}" / "images.mrcs"
        path.parent.mkdir()
        with mrcfile.new(path) as mrc:
            mrc.set_data(images[part])
            mrc.set_image_stack()
        places |= {int(image): (i + 1, str(path)) for i, image in enumerate(part)}

    def scatter(particle):
        image = particle.getIndex() - 1
        particle.setLocation(*places[image])
        particle.setObjId(5000 - 7 * image)

    scattered = rebuilt(imported, tmp_path / "scattered.sqlite", scatter)
    star = written(scattered, tmp_path)
    found, truth = read_particles(star), read_particles(simulated.particles)
    ids = starfile.read(star)["particles"]["rlnImageId"].to_numpy()
    image = (5000 - ids) // 7
    assert len(found.stacks) == 3
    assert_same_particles(found, truth, torch.from_numpy(image.copy()))
    for row in (0, 77, 150, 299):
        stack = mrcfile.read(found.stacks[found.stack_index[row]])
        np.testing.assert_array_equal(stack[found.frame[row]], images[image[row]])


def test_subsets_keep_ids_and_disabled_particles_are_left_out(imported, tmp_path):
    def thin(particle):
        particle.setEnabled(particle.getObjId() % 10 != 0)
        return particle.getObjId() > 20

    thinned = rebuilt(imported, tmp_path / "thin.sqlite", thin)
    notes = convert.writeParticles(thinned, str(tmp_path / "p.star"), str(tmp_path / "stacks"))
    assert notes == ["28 disabled particles are omitted."]
    ids = starfile.read(tmp_path / "p.star")["particles"]["rlnImageId"]
    assert sorted(ids) == [i for i in range(21, 301) if i % 10]
    assert convert.checkParticles(thinned) == ([], [])


def test_a_joined_set_has_the_optics_of_each_of_its_parts(imported, tmp_path):
    joined = SetOfParticles(filename=str(tmp_path / "joined.sqlite"))
    joined.setSamplingRate(PIXEL)
    joined.setAlignmentProj()
    joined.setHasCTF(True)
    joined.setAcquisition(Acquisition(voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1, magnification=1))
    for voltage, first in ((300, 0), (120, 300)):
        for particle in imported.iterItems():
            new = Particle()
            new.copyInfo(particle)
            new.setObjId(particle.getObjId() + first)
            del new._rlnOpticsGroup
            new.setAcquisition(
                Acquisition(voltage=voltage, sphericalAberration=2.7, amplitudeContrast=0.1, magnification=1)
            )
            joined.append(new)
    joined.write()
    star = written(joined, tmp_path)
    found = read_particles(star)
    expected = np.where(starfile.read(star)["particles"]["rlnImageId"] > 300, 120.0, 300.0)
    assert found.ctf.voltage.tolist() == expected.tolist()


def test_coordinates_and_micrographs_go_along(imported, tmp_path):
    from pwem.objects import Coordinate

    def place(particle):
        particle.setCoordinate(Coordinate(x=particle.getObjId(), y=3000 - particle.getObjId()))
        particle.getCoordinate().setMicName(f"my mic {particle.getObjId() % 3}.mrc")

    rows = starfile.read(written(rebuilt(imported, tmp_path / "placed.sqlite", place), tmp_path))["particles"]
    assert (rows["rlnCoordinateX"] == rows["rlnImageId"]).all()
    assert (rows["rlnCoordinateY"] == 3000 - rows["rlnImageId"]).all()
    assert list(rows["rlnMicrographName"]) == [f"my_mic_{i % 3}.mrc" for i in rows["rlnImageId"]]


def test_stacks_of_other_formats_are_converted(imported, simulated, tmp_path):
    spider = tmp_path / "particles.stk"
    ImageHandler().convertStack(str(simulated.stack), str(spider))
    other = rebuilt(imported, tmp_path / "other.sqlite", lambda particle: particle.setFileName(str(spider)))
    notes = convert.writeParticles(other, str(tmp_path / "p.star"), str(tmp_path / "stacks"))
    assert "1 stacks were converted to MRC" in notes[0]
    found = read_particles(tmp_path / "p.star")
    np.testing.assert_allclose(mrcfile.read(found.stacks[0])[found.frame[7]], mrcfile.read(simulated.stack)[7])


def test_a_path_that_star_files_cannot_hold_is_linked(imported, simulated, tmp_path):
    spaced = tmp_path / "with a space.mrcs"
    spaced.symlink_to(simulated.stack)
    other = rebuilt(imported, tmp_path / "other.sqlite", lambda particle: particle.setFileName(str(spaced)))
    assert len(read_particles(written(other, tmp_path))) == 300


def test_lost_optics_groups_are_said_and_taken_from_the_star_file(imported, simulated, tmp_path):
    def lose(particle):
        del particle._rlnOpticsGroup

    lost = SetOfParticles(filename=str(tmp_path / "lost.sqlite"))
    lost.copyInfo(imported)
    lost.setHasCTF(True)
    for particle in imported.iterItems():
        new = Particle()
        new.copyInfo(particle)
        new.setObjId(particle.getObjId())
        del new._rlnOpticsGroup
        lost.append(new)
    lost.write()
    (warning,) = convert.checkParticles(lost)[1]
    assert "'Optics groups from'" in warning
    assert convert.checkParticles(lost, str(simulated.particles)) == ([], [])
    assert "does not exist" in convert.checkParticles(lost, "nowhere.star")[0][0]
    truth = read_particles(simulated.particles)
    one = read_particles(written(lost, tmp_path))
    assert one.ctf.voltage.unique().tolist() == [300.0]
    both = read_particles(written(lost, tmp_path, opticsStar=str(simulated.particles)))
    assert_same_particles(both, truth)

    foreign = starfile.read(simulated.particles)
    foreign["particles"]["rlnImageName"] = foreign["particles"]["rlnImageName"].str.replace("particles", "others")
    starfile.write(foreign, tmp_path / "foreign.star")
    with pytest.raises(ConversionError, match="the particles were imported from"):
        written(lost, tmp_path, opticsStar=str(tmp_path / "foreign.star"))


def mirrored(particle):
    if particle.getObjId() == 5:
        matrix = particle.getTransform().getMatrix()
        matrix[0, :3] *= -1
        particle.setTransform(Transform(matrix))


def test_a_mirrored_alignment_is_refused_by_id(imported, tmp_path):
    with pytest.raises(ConversionError, match="Particle 5 has an alignment that is not a rotation"):
        written(rebuilt(imported, tmp_path / "mirrored.sqlite", mirrored), tmp_path)


def one_half(particles, path):
    return rebuilt(particles, path, lambda particle: particle._rlnRandomSubset.set(1))


def odd_half(particles, path):
    return rebuilt(particles, path, lambda particle: particle._rlnRandomSubset.set(particle.getObjId() % 3))


def gone(particles, path):
    moved = str(path.parent / "gone.mrcs")
    return rebuilt(particles, path, lambda particle: particle.setFileName(moved))


def few(particles, path):
    return rebuilt(particles, path, lambda particle: particle.setEnabled(particle.getObjId() <= 50))


def aligned_in_2d(particles, path):
    changed = rebuilt(particles, path)
    changed.setAlignment2D()
    return changed


def without_ctf(particles, path):
    changed = rebuilt(particles, path)
    changed.setHasCTF(False)
    return changed


def flipped(particles, path):
    changed = rebuilt(particles, path)
    changed.setIsPhaseFlipped(True)
    return changed


def still_open(particles, path):
    changed = rebuilt(particles, path)
    changed.setStreamState(changed.STREAM_OPEN)
    return changed


def empty(particles, path):
    return rebuilt(particles, path, lambda particle: False)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (one_half, "All particles are in half-set 1"),
        (odd_half, "half-set 0"),
        (gone, "Image files of the particles are missing (1, e.g. "),
        (few, "There are 50 enabled particles"),
        (aligned_in_2d, "no 3D alignment"),
        (without_ctf, "no CTF"),
        (flipped, "CTF-corrected"),
        (still_open, "is still open"),
        (empty, "is empty"),
    ],
)
def test_bad_particles_are_refused_in_a_sentence_before_a_run(imported, tmp_path, spoil, sentence):
    (error,) = convert.checkParticles(spoil(imported, tmp_path / "spoilt.sqlite"))[0]
    assert sentence in error


# ------------------------------------------------------------------ results


def results(ids, n_motions=2):
    """Columns as the engine writes them, in another order than the particles', each telling its particle's id."""
    ids = np.random.default_rng(3).permutation(ids)
    columns = {"rlnImageId": ids, "dynHalf": 1 + ids % 2, "dynValidation": ids % 5 == 0}
    columns |= {f"dynMotion{k + 1}": ids * 10.0**-k for k in range(n_motions)}
    return columns | {"dynMotionRms": ids / 7, "dynMotionError": ids / 9, "dynMotionDisagreement": ids / 11}


def test_results_are_matched_by_id(imported, tmp_path):
    chosen = [i for i in range(1, 301) if i % 4]
    columns = results(chosen)
    output = SetOfParticlesFlex(filename=str(tmp_path / "flex.sqlite"))
    output.copyInfo(imported)
    convert.fillParticles(output, imported, columns, np.stack([columns["rlnImageId"], -columns["rlnImageId"]], -1))
    output.write()
    assert sorted(output.getIdSet()) == chosen
    for particle in output.iterItems():
        number, before = particle.getObjId(), imported[particle.getObjId()]
        np.testing.assert_allclose(particle.getZFlex(), [number, number / 10])
        np.testing.assert_allclose(particle.getZRed(), [number, -number])
        assert particle._dynHalf.get() == 1 + number % 2
        assert particle._dynMotionRms.get() == pytest.approx(number / 7)
        assert particle._dynMotionError.get() == pytest.approx(number / 9)
        assert particle._dynMotionDisagreement.get() == pytest.approx(number / 11)
        assert particle.getIndex() == before.getIndex()
        assert particle._rlnOpticsGroup.get() == before._rlnOpticsGroup.get()


def test_a_particle_that_is_not_there_any_more_is_told(imported, tmp_path):
    output = SetOfParticlesFlex(filename=str(tmp_path / "flex.sqlite"))
    output.copyInfo(imported)
    with pytest.raises(ConversionError, match="1 particles of the run are no longer in the input set"):
        convert.fillParticles(output, imported, results(range(1, 302)), np.zeros((301, 2)))


def test_half_sets_that_the_engine_drew_and_poses_that_it_refined_come_back(imported, tmp_path):
    plain = SetOfParticles(filename=str(tmp_path / "plain.sqlite"))
    plain.setSamplingRate(PIXEL)
    for particle in imported.iterItems():
        new = Particle(location=particle.getLocation())
        new.setObjId(particle.getObjId())
        new.setCTF(CTFModel(defocusU=1, defocusV=1, defocusAngle=0))
        new.setTransform(particle.getTransform())
        plain.append(new)
    plain.write()
    columns = results(range(1, 301))
    poses = np.random.default_rng(4).uniform(1, 170, (5, 300))
    names = ("dynAngleRot", "dynAngleTilt", "dynAnglePsi", "dynOriginXAngst", "dynOriginYAngst")
    columns |= dict(zip(names, poses, strict=True))
    output = SetOfParticlesFlex(filename=str(tmp_path / "flex.sqlite"))
    output.copyInfo(plain)
    convert.fillParticles(output, plain, columns, np.zeros((300, 2)))
    output.write()
    row = {number: i for i, number in enumerate(columns["rlnImageId"])}
    for particle in output.iterItems():
        assert particle._rlnRandomSubset.get() == 1 + particle.getObjId() % 2
        found = posesOfMatrices(particle.getTransform().getMatrix()[None], PIXEL)
        np.testing.assert_allclose(np.ravel(found), poses[:, row[particle.getObjId()]], atol=1e-6)


# ------------------------------------------------------------------ volumes


def blob(box, pixel, centre=(0.0, 0.0, 0.0), width=9.0):
    """A Gaussian at `centre` (x, y, z) from the box's centre, A."""
    axis = (np.arange(box) - box // 2) * pixel
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    distance = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
    return np.exp(-distance / (2 * width**2)).astype(np.float32)


def volume_of(data, pixel, path, cls=Volume):
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.set_volume()
    volume = cls(str(path))
    volume.setSamplingRate(pixel)
    return volume


@pytest.mark.parametrize(("box", "pixel"), [(64, 3.0), (24, 6.0), (40, 4.1), (33, 6.0)])
def test_volumes_of_another_box_or_sampling_are_resampled_in_place(tmp_path, box, pixel):
    centre = (12.0, -18.0, 6.0)
    volume = volume_of(blob(box, pixel, centre), pixel, tmp_path / "map.mrc")
    error, warning = convert.describeVolume(volume, 32, PIXEL, "map")
    assert error is None
    assert "will be resampled" in warning
    (note,) = convert.writeVolume(volume, 32, PIXEL, str(tmp_path / "out.mrc"), "map")
    assert "was resampled" in note
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        np.testing.assert_allclose(mrc.data, blob(32, PIXEL, centre), atol=0.02)
        assert float(mrc.voxel_size.x) == pytest.approx(PIXEL)


def test_a_volume_on_the_particles_grid_is_left_as_it_is(tmp_path):
    volume = volume_of(blob(32, PIXEL), PIXEL, tmp_path / "map.mrc")
    assert convert.describeVolume(volume, 32, PIXEL, "map") == (None, None)
    assert convert.writeVolume(volume, 32, PIXEL, str(tmp_path / "out.mrc"), "map") == []
    np.testing.assert_array_equal(mrcfile.read(tmp_path / "out.mrc"), blob(32, PIXEL))


def test_an_origin_off_the_centre_moves_the_map_and_one_in_the_corner_does_not(tmp_path):
    volume = volume_of(blob(32, PIXEL), PIXEL, tmp_path / "map.mrc")
    volume.setOrigin(Transform())
    volume.getOrigin().setShifts(-96 + 12, -96, -96 - 18)
    (note,) = convert.writeVolume(volume, 32, PIXEL, str(tmp_path / "out.mrc"), "map")
    assert "an origin (12, 0, -18) Å from its centre" in note
    np.testing.assert_allclose(mrcfile.read(tmp_path / "out.mrc"), blob(32, PIXEL, (12, 0, -18)), atol=0.02)

    volume.getOrigin().setShifts(0, 0, 0)
    assert convert.writeVolume(volume, 32, PIXEL, str(tmp_path / "out.mrc"), "map") == []
    np.testing.assert_array_equal(mrcfile.read(tmp_path / "out.mrc"), blob(32, PIXEL))


def test_masks_stay_between_0_and_1_and_others_are_refused(tmp_path):
    mask = volume_of((blob(50, 4.0) > 0.3).astype(np.float32), 4.0, tmp_path / "mask.mrc", VolumeMask)
    convert.writeVolume(mask, 32, PIXEL, str(tmp_path / "out.mrc"), "mask", isMask=True)
    data = mrcfile.read(tmp_path / "out.mrc")
    assert data.min() == 0
    assert 0.9 < data.max() <= 1
    np.testing.assert_allclose(data[16, 16, 16], 1)
    wrong = volume_of(255 * blob(32, PIXEL), PIXEL, tmp_path / "wrong.mrc", VolumeMask)
    with pytest.raises(ConversionError, match="give a mask from 0 to 1"):
        convert.writeVolume(wrong, 32, PIXEL, str(tmp_path / "out.mrc"), "mask", isMask=True)


def test_other_formats_are_read_and_missing_files_told(tmp_path):
    volume_of(blob(32, PIXEL), PIXEL, tmp_path / "map.mrc")
    ImageHandler().convert(str(tmp_path / "map.mrc"), str(tmp_path / "map.vol"))
    spider = Volume(str(tmp_path / "map.vol"))
    spider.setSamplingRate(PIXEL)
    convert.writeVolume(spider, 32, PIXEL, str(tmp_path / "out.mrc"), "map")
    np.testing.assert_allclose(mrcfile.read(tmp_path / "out.mrc"), blob(32, PIXEL), atol=1e-6)
    spider.setFileName(str(tmp_path / "gone.mrc"))
    assert "is missing" in convert.describeVolume(spider, 32, PIXEL, "map")[0]


def test_a_half_map_of_another_box_is_refused(tmp_path):
    volume = volume_of(blob(32, PIXEL), PIXEL, tmp_path / "map.mrc")
    volume_of(blob(24, PIXEL), PIXEL, tmp_path / "half.mrc")
    with pytest.raises(ConversionError, match="give maps of one refinement"):
        convert.writeVolume(volume, 32, PIXEL, str(tmp_path / "out.mrc"), "half", path=str(tmp_path / "half.mrc"))


def test_a_set_without_half_sets_is_warned_of(imported, tmp_path):
    bare = SetOfParticles(filename=str(tmp_path / "bare.sqlite"))
    bare.copyInfo(imported)
    bare.setHasCTF(True)
    for particle in imported.iterItems():
        new = Particle()
        new.copyInfo(particle)
        new.setObjId(particle.getObjId())
        del new._rlnRandomSubset
        new._rlnGroupNumber = Integer(1)
        bare.append(new)
    bare.write()
    errors, (warning,) = convert.checkParticles(bare)
    assert errors == []
    assert "no half-sets" in warning
    assert not read_particles(written(bare, tmp_path)).halves.any()
