"""STAR files: every dialect gives the same particles, rows survive, bad input is refused in a sentence."""

import numpy as np
import pandas as pd
import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.particles.metadata import check_enough, describe, read_particles, write_particles
from dynamight_core.particles.star import write_star


def shuffled(columns):
    labels = list(columns)
    np.random.default_rng(3).shuffle(labels)
    return {label: columns[label] for label in labels}


def relion_30(files):
    return files.star(files.rows("3.0"), optics=False, block="")


def relion_30_images(files):
    rows = files.rows("3.0", rlnDetectorPixelSize=None, rlnMagnification=None, rlnPixelSize=["2.0"] * files.n)
    return files.star(shuffled(rows), optics=False, block="images")


def relion_31(files):
    return files.star()


def relion_5_shuffled(files):
    return files.star(shuffled(files.rows()), shuffled(files.optics(3)), block="particles")


def optics_in_rows(files):
    rows = files.rows("3.0", rlnOriginX=None, rlnOriginY=None, rlnImagePixelSize=["2.0"] * files.n)
    rows |= {label: values for label, values in files.rows().items() if "Angst" in label}
    return files.star(rows, optics=False)


def optics_without_a_loop(files):
    path = files.star(optics=False)
    pairs = "".join(f"_{label}   {values[0]}\n" for label, values in files.optics().items())
    path.write_text(f"# version 30001\n\ndata_optics\n\n{pairs}\n" + path.read_text())
    return path


DIALECTS = [relion_30, relion_30_images, relion_31, relion_5_shuffled, optics_in_rows, optics_without_a_loop]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_same_particles(particle_files, dialect):
    files = particle_files
    files.stack()
    particles = read_particles(dialect(files))
    assert len(particles) == files.n
    assert (particles.box, particles.pixel_size) == (16, pytest.approx(2.0))
    torch.testing.assert_close(particles.angles, torch.tensor(np.deg2rad(files.angles), dtype=torch.float32))
    torch.testing.assert_close(particles.shifts, torch.tensor(files.shifts, dtype=torch.float32))
    ctf = particles.ctf
    np.testing.assert_allclose(torch.stack([ctf.defocus_u, ctf.defocus_v], -1), files.defocus, rtol=1e-6)
    assert ctf.defocus_angle.unique().item() == pytest.approx(np.pi / 6)
    assert ctf.voltage.unique().item() == 200
    assert ctf.spherical_aberration.unique().item() == pytest.approx(1.4)
    assert ctf.amplitude_contrast.unique().item() == pytest.approx(0.07)
    assert particles.halves.tolist() == [1, 2] * 6
    assert particles.frame.tolist() == list(range(12))
    assert particles.image_groups.unique().numel() == 12
    assert not particles.premultiplied


@pytest.mark.parametrize("dialect", DIALECTS)
def test_rows_written_back_are_the_rows_that_were_read(particle_files, dialect):
    files = particle_files
    files.stack()
    particles = read_particles(dialect(files))
    out = files.folder / "out" / "particles.star"
    write_particles(out, particles, {"dynHalf": particles.halves.numpy()})
    again = read_particles(out, project=files.folder)
    assert list(again.table.columns) == [*particles.table.columns, "dynHalf"]
    assert again.table[particles.table.columns].equals(particles.table)
    assert again.block == particles.block
    assert (again.optics is None) == (particles.optics is None)
    if again.optics is not None:
        assert again.optics.equals(particles.optics)
    assert not list(out.parent.glob(".*"))


def test_text_that_looks_like_a_number_is_written_as_it_was(particle_files):
    files = particle_files
    files.stack()
    texts = [
        "007",
        "1e5",
        "0.1000",
        "1.23456789012345678",
        "-0",
        "None",
        "nan",
        '"a b"',
        '""',
        "+3",
        "1_000",
        "inf",
    ]
    path = files.star(files.rows(rlnGroupName=texts))
    write_particles(path.with_name("out.star"), read_particles(path), {})
    written = read_particles(path.with_name("out.star")).table["rlnGroupName"]
    assert written.tolist() == texts
    body = path.with_name("out.star").read_text().splitlines()
    assert all(any(text in line.split("\t") for line in body) for text in texts)


def test_added_numbers_come_back_exactly(particle_files):
    files = particle_files
    files.stack()
    generator = np.random.default_rng(0)
    columns = {
        "dynLatent1": generator.normal(size=12).astype(np.float32) * 10.0 ** np.arange(-6, 6, dtype=np.float32),
        "dynMotion1": generator.normal(size=12) * 1e-9,
        "dynHalf": np.arange(12, dtype=np.int8),
        "dynValidation": np.arange(12) % 3 == 0,
    }
    path = files.star()
    write_particles(path.with_name("out.star"), read_particles(path), columns)
    table = read_particles(path.with_name("out.star")).table
    for name, values in columns.items():
        np.testing.assert_array_equal(table[name].astype(np.float64).astype(values.dtype), values)
    assert set(table["dynValidation"]) == {"0", "1"}


def test_writing_again_overwrites_our_columns_and_no_others(particle_files):
    files = particle_files
    files.stack()
    path = files.star(files.rows(dynHalf=["1"] * 12))
    write_particles(path.with_name("out.star"), read_particles(path), {"dynHalf": np.full(12, 2)})
    table = read_particles(path.with_name("out.star")).table
    assert list(table.columns) == list(files.rows()) + ["dynHalf"]
    assert set(table["dynHalf"]) == {"2"}
    with pytest.raises(ValueError, match="11 values for 12"):
        write_particles(path.with_name("out.star"), read_particles(path), {"dynHalf": np.zeros(11)})


def test_a_table_of_numbers_can_be_written(tmp_path):
    write_star(tmp_path / "fsc.star", pd.DataFrame({"rlnResolution": [0.1, 1 / 3], "rlnIndex": [1, 2]}), None, "fsc")
    assert "0.3333333333333333\t2" in (tmp_path / "fsc.star").read_text()


@pytest.mark.parametrize("where", ["beside", "project", "parent", "absolute", "linked"])
def test_images_are_found(particle_files, where):
    files = particle_files
    stack = files.stack("Extract/job012/mic.mrcs")
    name, star, project = "Extract/job012/mic.mrcs", "Refine3D/job020/run_data.star", None
    if where == "beside":
        name, star = "mic.mrcs", "Extract/job012/particles.star"
    elif where == "project":
        name, star, project = "job012/mic.mrcs", "elsewhere/particles.star", files.folder / "Extract"
    elif where == "absolute":
        name = str(stack)
    path = files.star(files.rows(stack=name), name=star)
    if where == "linked":
        link = files.folder.parent / f"{files.folder.name}-link.star"
        link.symlink_to(path)
        path = link
    assert [p.resolve() for p in read_particles(path, project).stacks] == [stack.resolve()]


def test_many_stacks_and_single_images(particle_files):
    files = particle_files
    names = files.stacks_and_single_images()
    particles = read_particles(files.star(files.rows(rlnImageName=names)))
    expected = [name for i in range(3) for name in (f"mic{i}.mrcs", f"single{i}.mrc")]
    assert [path.name for path in particles.stacks] == expected
    assert particles.frame.tolist() == [0, 1, 2, 0] * 3
    assert particles.image_groups.unique().numel() == 12


def test_each_particle_has_the_optics_of_its_group(particle_files):
    files = particle_files
    files.stack()
    optics = files.optics(
        3,
        rlnOpticsGroup=["7", "2", "5"],
        rlnVoltage=["300", "200", "100"],
        rlnBeamTiltX=["0.1", "0.2", "0.3"],
        rlnBeamTiltY=["-0.1", "0", "0"],
        rlnOddZernike=["[1,2,3]", "[]", "[4]"],
        rlnEvenZernike=["[0.5,-0.25]", "[1e-1,0]", "[0,0]"],
        rlnMagMat00=["1.01", "1", "1"],
        rlnMagMat01=["0.02", "0", "0"],
        rlnMagMat10=["-0.01", "0", "0"],
        rlnMagMat11=["0.98", "1", "1"],
    )
    rows = files.rows(
        rlnOpticsGroup=["7", "2", "5"] * 4,
        rlnPhaseShift=["90.0"] * 12,
        rlnCtfBfactor=["40.0"] * 12,
        rlnCtfScalefactor=["0.9"] * 12,
        rlnNormCorrection=["0.5", "1.5"] * 6,
    )
    particles = read_particles(files.star(rows, optics))
    ctf = particles.ctf
    assert ctf.voltage[:3].tolist() == [300, 200, 100]
    torch.testing.assert_close(ctf.beam_tilt[:3], torch.tensor([[0.1, -0.1], [0.2, 0], [0.3, 0]]))
    assert ctf.odd_zernike[:3].tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    torch.testing.assert_close(ctf.even_zernike[:3], torch.tensor([[0.5, -0.25], [0.1, 0], [0, 0]]))
    torch.testing.assert_close(ctf.magnification[0], torch.tensor([[1.01, 0.02], [-0.01, 0.98]]))
    assert torch.equal(ctf.magnification[1], torch.eye(2))
    assert ctf.phase_shift[0].item() == pytest.approx(np.pi / 2)
    assert (ctf.b_factor[0].item(), ctf.scale[0].item()) == (40, pytest.approx(0.9))
    assert particles.norm_correction[:2].tolist() == [0.5, 1.5]


def test_a_distorted_projection_puts_points_where_the_matrices_say(particle_files):
    files = particle_files
    files.stack()
    matrix = np.array([[1.03, 0.04], [-0.02, 0.95]])
    labels = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
    magnification = {label: [str(value)] for label, value in zip(labels, matrix.ravel(), strict=True)}
    particles = read_particles(files.star(optics=files.optics(**magnification)))
    point = np.array([60.0, -35.0, 48.0])
    plain = read_particles(files.star()).matrices[0].numpy() @ point
    # An image that holds the true frequency M k at k, made by the inverse transform of a blurred point
    box, pixel_size = 128, 2.0
    k = np.stack(np.meshgrid(np.fft.fftfreq(box), np.fft.fftfreq(box)), -1) / pixel_size
    true = k @ matrix.T
    transform = np.exp(-2j * np.pi * true @ plain[:2] - 200 * (true**2).sum(-1))
    image = np.fft.fftshift(np.fft.ifft2(transform).real)
    y, x = np.unravel_index(image.argmax(), image.shape)
    appears = particles.matrices[0].numpy()[:2] @ point
    assert np.hypot(*(plain[:2] - appears)) > 3
    np.testing.assert_allclose((np.array([x, y]) - box // 2) * pixel_size, appears, atol=pixel_size / 2)


def test_rows_of_one_image_share_a_group(particle_files):
    files = particle_files
    files.stack()
    names = [f"{i // 3 + 1:0{1 + i % 3}d}@particles.mrcs" for i in range(12)]
    particles = read_particles(files.star(files.rows(rlnImageName=names)))
    assert particles.image_groups.tolist() == [i // 3 for i in range(12)]


def test_a_stack_by_two_names_is_one(particle_files):
    files = particle_files
    stack = files.stack()
    (files.folder / "link.mrcs").symlink_to(stack)
    names = [f"1@{name}" for name in ("particles.mrcs", stack, "link.mrcs", "./particles.mrcs")] * 3
    particles = read_particles(files.star(files.rows(rlnImageName=names)))
    assert len(particles.stacks) == 1
    assert not particles.image_groups.any()


def test_a_subset_is_what_was_chosen(particle_files):
    files = particle_files
    files.stack()
    particles = read_particles(files.star())
    for index in ([5, 2], np.arange(12) % 2 == 0, slice(3, 7), torch.tensor([1, 1])):
        chosen = np.arange(12)[index if isinstance(index, slice) else np.asarray(index)]
        part = particles.subset(index)
        assert len(part) == len(part.ctf) == len(chosen)
        assert part.frame.tolist() == chosen.tolist()
        assert torch.equal(part.angles, particles.angles[torch.from_numpy(chosen)])
        assert part.table["rlnImageName"].tolist() == particles.table["rlnImageName"].iloc[chosen].tolist()


def test_what_was_understood_is_described(particle_files):
    files = particle_files
    files.stack()
    text = "\n".join(describe(read_particles(files.star(files.rows(rlnPhaseShift=["90"] * 12)))))
    for part in (
        "12 particles in 1 stack",
        "3.1",
        "1 optics group",
        "16 pixels of 2 A",
        "6 and 6",
        "phase shift",
    ):
        assert part in text
    names = ["1@particles.mrcs", "2@particles.mrcs"] * 6
    rows = files.rows("3.0", rlnImageName=names, rlnRandomSubset=None)
    text = "\n".join(describe(read_particles(files.star(rows, optics=False))))
    for part in ("of 2 images (symmetry-expanded)", "3.0", "none in the file", "present: nothing"):
        assert part in text


def one_bad(value, n=12, good="1.0", row=4):
    return [value if i == row else good for i in range(n)]


BAD_ROWS = {
    "no rot": ({"rlnAngleRot": None}, ["no column rlnAngleRot"]),
    "no psi": ({"rlnAnglePsi": None}, ["no column rlnAnglePsi"]),
    "no origin": ({"rlnOriginXAngst": None, "rlnOriginYAngst": None}, ["no column rlnOriginXAngst"]),
    "half an origin": ({"rlnOriginYAngst": None}, ["no column rlnOriginYAngst"]),
    "no defocus": ({"rlnDefocusU": None}, ["no column rlnDefocusU"]),
    "no astigmatism": ({"rlnDefocusAngle": None}, ["no column rlnDefocusAngle"]),
    "no images": ({"rlnImageName": None}, ["no column rlnImageName"]),
    "NaN pose": ({"rlnAngleTilt": one_bad("nan")}, ["'nan'", "row 5", "rlnAngleTilt"]),
    "NaN CTF": ({"rlnDefocusV": one_bad("NaN")}, ["row 5", "rlnDefocusV"]),
    "infinite shift": ({"rlnOriginXAngst": one_bad("inf")}, ["'inf'", "row 5", "rlnOriginXAngst"]),
    "text for a number": ({"rlnDefocusU": one_bad("bad")}, ["'bad'", "row 5", "rlnDefocusU"]),
    "odd half-set": (
        {"rlnRandomSubset": one_bad("3", good="1")},
        ["'3'", "row 5", "rlnRandomSubset", "1 or 2"],
    ),
    "NaN half-set": ({"rlnRandomSubset": one_bad("nan", good="1")}, ["row 5", "rlnRandomSubset"]),
    "norm of zero": ({"rlnNormCorrection": one_bad("0")}, ["row 5", "rlnNormCorrection", "positive"]),
    "unknown group": (
        {"rlnOpticsGroup": one_bad("9", good="1")},
        ["row 5", "rlnOpticsGroup 9", "data_optics"],
    ),
    "index zero": ({"rlnImageName": one_bad("0@particles.mrcs", good="1@particles.mrcs")}, ["row 5", "'0@"]),
    "index text": ({"rlnImageName": one_bad("x@particles.mrcs", good="1@particles.mrcs")}, ["row 5", "'x@"]),
    "stack without index": ({"rlnImageName": ["particles.mrcs"] * 12}, ["row 1", "index@stack"]),
    "missing stack": (
        {"rlnImageName": one_bad("1@gone.mrcs", good="1@particles.mrcs")},
        ["row 5", "gone.mrcs", "project folder"],
    ),
    "an image twice in a particle": (
        {"rlnTomoParticleName": ["a", "b"] * 6, "rlnImageName": ["1@particles.mrcs"] * 12},
        ["row 3", "the same particle"],
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused(particle_files, case):
    columns, parts = BAD_ROWS[case]
    particle_files.stack()
    path = particle_files.star(particle_files.rows(**columns))
    assert_refused(path, [str(path), *parts])


BAD_OPTICS = {
    "no voltage": ({"rlnVoltage": None}, ["no column rlnVoltage", "optics table"]),
    "no Cs": ({"rlnSphericalAberration": None}, ["no column rlnSphericalAberration"]),
    "no amplitude contrast": ({"rlnAmplitudeContrast": None}, ["no column rlnAmplitudeContrast"]),
    "no pixel size": ({"rlnImagePixelSize": None}, ["no column rlnImagePixelSize"]),
    "no group": ({"rlnOpticsGroup": None}, ["no column rlnOpticsGroup in data_optics"]),
    "a group twice": ({"rlnOpticsGroup": ["1", "1"]}, ["two optics groups"]),
    "images too small for the others": (
        {"rlnImagePixelSize": ["2.0", "1.5"]},
        ["16 pixels of 1.5 A (24.0 A)", "too small for a box of 32.0 A"],
    ),
    "pixel size of zero": ({"rlnImagePixelSize": ["0", "0"]}, ["rlnImagePixelSize 0", "positive"]),
    "NaN optics": ({"rlnVoltage": ["200", "nan"]}, ["row 2", "rlnVoltage", "data_optics"]),
    "broken Zernike list": ({"rlnOddZernike": ["[1,x]", "[]"]}, ["'[1,x]'", "rlnOddZernike"]),
    "subtomograms": ({"rlnImageDimensionality": ["3", "3"]}, ["rlnImageDimensionality 3"]),
    "some premultiplied": ({"rlnCtfDataAreCtfPremultiplied": ["0", "1"]}, ["rlnCtfDataAreCtfPremultiplied"]),
    "CTF-corrected": ({"rlnCtfDataAreCtfCorrected": ["1", "1"]}, ["rlnCtfDataAreCtfCorrected"]),
}


@pytest.mark.parametrize("case", BAD_OPTICS)
def test_bad_optics_are_refused(particle_files, case):
    columns, parts = BAD_OPTICS[case]
    particle_files.stack()
    rows = particle_files.rows(rlnOpticsGroup=["1", "2"] * 6)
    path = particle_files.star(rows, particle_files.optics(2, **columns))
    assert_refused(path, [str(path), *parts])


BAD_FILES = {
    "missing": (None, ["does not exist"]),
    "empty": ("", ["no particles table"]),
    "prose": ("Dear microscope,\nthe particles are attached.\n", ["no particles table"]),
    "only optics": ("data_optics\n\nloop_\n_rlnOpticsGroup #1\n1\n", ["no particles table"]),
    "block without entries": ("data_particles\n", ["empty particles table"]),
    "no rows": ("data_particles\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n\n", ["empty particles table"]),
    "ragged": (
        "data_particles\n\nloop_\n_rlnImageName #1\n_rlnA #2\na 1\nb 2 3\n",
        ["3 values in line 7 for 2 columns"],
    ),
    "too few labels": ("data_particles\n\nloop_\n_rlnImageName #1\na 1\nb 2\n", ["2 values in line 5 for 1 columns"]),
    "a label twice": ("data_particles\n\nloop_\n_rlnA #1\n_rlnA #2\na 1\nb 2\n", ["rlnA twice"]),
    "binary": ("\0\1\2" * 100, ["not a text file"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_hold_no_particles_are_refused(tmp_path, case):
    text, parts = BAD_FILES[case]
    path = tmp_path / "particles.star"
    if text is not None:
        path.write_text(text)
    assert_refused(path, [str(path), *parts])


def test_a_folder_is_refused(tmp_path):
    assert_refused(tmp_path, [str(tmp_path), "is a folder"])


def test_old_particles_without_their_microscope_are_refused(particle_files):
    files = particle_files
    files.stack()
    for label, part in (
        ("rlnMagnification",) * 2,
        ("rlnVoltage",) * 2,
        ("rlnDetectorPixelSize", "rlnImagePixelSize"),
    ):
        path = files.star(files.rows("3.0", **{label: None}), optics=False)
        assert_refused(path, [str(path), f"no column {part}"])


def test_two_hundred_particles_are_enough(particle_files):
    particle_files.stack()
    particles = read_particles(particle_files.star())
    check_enough(particles.subset(np.zeros(200, dtype=int)))
    with pytest.raises(InputError, match=r"199 particles.*at least 200"):
        check_enough(particles.subset(np.zeros(199, dtype=int)))


def assert_refused(path, parts):
    with pytest.raises(InputError) as caught:
        read_particles(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and ". " not in sentence and "; " in sentence
    for part in parts:
        assert part in sentence
