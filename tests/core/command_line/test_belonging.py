"""Results stay with their images: re-sorted files work; edited and foreign ones are refused with the difference."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import starfile

from dynamight_core.belonging import arranged, check_files, record_files, record_inputs
from dynamight_core.errors import InputError
from dynamight_core.options import InputOptions
from dynamight_core.particles.metadata import read_particles
from tests.support.command_line import dynamight, train_words


@pytest.fixture
def recorded(particle_files, tmp_path):
    """A folder with the identity of a particle set, and the set."""
    particle_files.stack()
    star = particle_files.star()
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "map.mrc").write_bytes(bytes(100_000))
    record_inputs(run, read_particles(star), InputOptions(star=str(star), map=str(tmp_path / "map.mrc")))
    return run, star


def rewrite(star, change):
    """Change the rows of a STAR file, and read it."""
    blocks = starfile.read(star, always_dict=True)
    blocks["particles"] = change(blocks["particles"])
    starfile.write(blocks, star)
    return read_particles(star)


def test_rows_in_another_order_come_back_in_that_of_the_training(recorded):
    run, star = recorded
    wanted = read_particles(star)
    found = arranged(run, rewrite(star, lambda rows: rows.sample(frac=1, random_state=1)))
    assert found.table["rlnImageName"].tolist() == wanted.table["rlnImageName"].tolist()
    assert np.array_equal(found.angles, wanted.angles)
    assert np.array_equal(found.ctf.defocus_u, wanted.ctf.defocus_u)


def test_rows_of_one_image_are_told_apart_by_their_poses(particle_files, tmp_path):
    particle_files.stack()
    star = particle_files.star()

    def expand(rows):
        other = rows.copy()
        other["rlnAngleRot"] = (other["rlnAngleRot"].astype(float) + 180).round(3)
        return pd.concat([rows, other])

    wanted = rewrite(star, expand)
    record_inputs(tmp_path, wanted, InputOptions(star=str(star)))
    found = arranged(tmp_path, rewrite(star, lambda rows: rows.sample(frac=1, random_state=1)))
    assert np.array_equal(found.angles, wanted.angles)


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("rlnAngleTilt", 12.5, "in row 3 .*another pose than"),
        ("rlnOriginXAngst", 1.5, "in row 3 .*another pose than"),
        ("rlnDefocusU", 12345.0, "in row 3 .*another CTF"),
        ("rlnDefocusAngle", 1.25, "in row 3 .*another CTF"),
    ],
)
def test_the_first_row_that_was_edited_is_named(recorded, column, value, sentence):
    run, star = recorded

    def edit(rows):
        rows[column] = rows[column].astype(float)
        rows.loc[[2, 4], column] = value
        return rows

    with pytest.raises(InputError, match=sentence):
        arranged(run, rewrite(star, edit))


def test_an_image_that_is_missing_or_foreign_is_named(recorded):
    run, star = recorded

    def replace(rows):
        rows.loc[1, "rlnImageName"] = rows.loc[0, "rlnImageName"]
        return rows

    with pytest.raises(InputError, match="lacks the image of row 2 of"):
        arranged(run, rewrite(star, replace))


def test_the_way_numbers_are_written_does_not_matter(recorded):
    run, star = recorded
    found = arranged(run, rewrite(star, lambda rows: rows.assign(rlnDefocusU=[f"{x:.9e}" for x in rows.rlnDefocusU])))
    assert len(found)


def test_a_stack_or_map_that_was_replaced_is_refused(recorded):
    run, star = recorded
    particles = read_particles(star)
    inputs = InputOptions(star=str(star), map=str(run.parent / "map.mrc"))
    check_files(run, inputs)
    with open(inputs.map, "r+b") as file:
        file.write(b"x")
    with pytest.raises(
        InputError, match=r"map\.mrc is not the file that belongs to .* \(its --map\) \(other contents\)"
    ):
        check_files(run, inputs)
    with open(particles.stacks[0], "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="bytes, and had"):
        arranged(run, particles)


def test_a_model_of_another_training_is_refused(tmp_path):
    names = [f"half{half}/model.safetensors" for half in (1, 2)]
    names += ["latents.safetensors", "particles.star", "analysis/motions.safetensors"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    record_files(tmp_path)
    check_files(tmp_path, InputOptions())
    (tmp_path / names[0]).write_text(names[1])
    with pytest.raises(InputError, match=r"half1/model\.safetensors is not the file that belongs to"):
        check_files(tmp_path, InputOptions())


def test_a_selection_from_a_re_sorted_file_has_the_values_of_its_images(data, trained, tmp_path):
    folder = shutil.copytree(data.particles.parent, tmp_path / "data")
    run = shutil.copytree(trained, tmp_path / "run")
    config = (run / "config.yaml").read_text().replace(str(data.particles.parent), str(folder))
    (run / "config.yaml").write_text(config)
    rewrite(folder / "particles.star", lambda rows: rows.sample(frac=1, random_state=1))
    code, text = dynamight("select", run, "--along", "1:0:", "--out", tmp_path / "out.star", "--use-unsupported-motion")
    assert code == 0, text
    found = starfile.read(tmp_path / "out.star")["particles"].set_index("rlnImageName")
    wanted = starfile.read(run / "particles.star")["particles"].set_index("rlnImageName").loc[found.index]
    np.testing.assert_allclose(found["dynMotion1"], wanted["dynMotion1"])
    np.testing.assert_allclose(found["rlnAngleTilt"], wanted["rlnAngleTilt"])


def test_a_re_sorted_file_starts_from_a_previous_run_image_by_image(data, trained, tmp_path):
    blocks = starfile.read(data.particles)
    blocks["particles"] = blocks["particles"].sample(frac=1, random_state=1)
    star = data.particles.with_name("sorted.star")
    starfile.write(blocks, star)
    words = train_words(data, tmp_path / "more", "--start-from", trained, "--epochs", "2")
    words[1] = star
    code, text = dynamight(*words)
    # Held-out particles were drawn by row, so that others would be held out.
    assert code == 2
    assert "held-out particles" in text
    assert json.loads((trained / "files.json").read_text())


def test_the_same_particles_in_other_images_are_accepted_and_others_are_not(recorded):
    run, star = recorded
    stack = star.with_name("particles.mrcs")
    stack.with_name("binned.mrcs").write_bytes(stack.read_bytes())

    def rename(rows):
        return rows.assign(rlnImageName=rows["rlnImageName"].str.replace("particles.mrcs", "binned.mrcs"))

    renamed = rewrite(star, rename)
    assert arranged(run, renamed) is renamed
    with pytest.raises(InputError, match="lacks the image of row 1"):
        arranged(run, rewrite(star, lambda rows: rows.iloc[::-1]))
