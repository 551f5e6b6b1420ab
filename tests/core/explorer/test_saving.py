"""Files that the explorer writes: those of the command line, each once, inside the run."""

import gemmi
import numpy as np
import pandas as pd
import pytest
import starfile

from dynamight_core.analysis.explorer.session import Explorer
from dynamight_core.analysis.select import inside_polygon
from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run

SQUARE = "1,2:0,-9:9,-9:9,9:0,9"


@pytest.mark.slow
def test_what_is_saved_is_what_the_command_line_writes(explorer, folder, dynamight):
    # The page saves; the command that it names, given another name, writes the same files.
    found = explorer.saver.save_selection({"polygon": SQUARE, "half": 1}, "right")
    path = folder / "analysis" / "selections" / "right.star"
    rows = starfile.read(path)["particles"]
    assert found.values["particles"] == len(rows) > 0
    assert (rows["dynMotion1"] > 0).all() and (rows["dynHalf"] == 1).all()
    found = explorer.saver.save_states({"through": ["-2", "0,0.5", "2"], "n_states": 3}, "way")
    out = folder / "analysis" / "states" / "way"
    maps = {f"path_state{i:02d}.mrc" for i in (1, 2, 3)}
    beside = {"states.csv", "states.cxc", "arrows.bild", "arrows.csv", "movie.gif", "movie.mp4"}
    beside |= {"displacement.mrc", "film.cxc", "deviations.csv"}
    assert {path.name for path in out.iterdir()} == beside | maps
    table = pd.read_csv(out / "states.csv")
    np.testing.assert_allclose(table["motion1_A"], [-2, 0, 2], atol=1e-3)
    explorer.saver.save_states({"at": ["-2", "2"], "difference": True, "movie": False}, "two")
    volumes = {path.stem: read_map(path)[0] for path in (folder / "analysis" / "states" / "two").glob("*.mrc")}
    np.testing.assert_allclose(volumes["difference"], volumes["state02"] - volumes["state01"], atol=1e-5)
    lines = [line for line in (folder / "analysis" / "explored.sh").read_text().splitlines() if line[0] != "#"]
    assert len(lines) == 3
    path.unlink()
    (out / "path_state02.mrc").rename(folder / "before.mrc")
    for line in lines:
        code, text = dynamight(*line.split()[1:])
        assert code == 0, text
    pd.testing.assert_frame_equal(starfile.read(path)["particles"], rows)
    np.testing.assert_array_equal(read_map(out / "path_state02.mrc")[0], read_map(folder / "before.mrc")[0])


def test_an_atomic_model_moves_along_and_is_saved_at_every_state(folder, tmp_path):
    run = Run(folder)
    structure, chain = gemmi.Structure(), gemmi.Chain("A")
    corner = run.box // 2 * run.pixel_size
    for number, point in enumerate(run.motions.points[::40].double().numpy() + corner, 1):
        atom, residue = gemmi.Atom(), gemmi.Residue()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*point)
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(number))
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure.add_model(gemmi.Model(1))
    structure[0].add_chain(chain)
    structure.write_pdb(str(tmp_path / "model.pdb"))
    explorer = Explorer(run, tmp_path / "model.pdb", reporter=QUIET)
    parts = explorer.molecule().arrays
    assert len(parts["trace"]) == len(parts["trace_starts"]) == len(chain)
    explorer.saver.save_states({"at": ["2"]}, "bent")
    saved = gemmi.read_structure(str(folder / "analysis" / "states" / "bent" / "model_state01.cif"))
    found = np.array([residue[0].pos.tolist() for residue in saved[0][0]])
    # The page's trace is in the frame of its densities, the file in its own.
    expected = parts["trace"] + 2 * parts["trace_motions"][0] + corner
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_nothing_is_overwritten_and_nothing_leaves_the_folder(explorer):
    explorer.saver.save_selection({"polygon": SQUARE}, "one")
    for action, message in (
        (lambda: explorer.saver.save_selection({"polygon": SQUARE}, "one"), "already exists"),
        (lambda: explorer.saver.save_selection({"polygon": SQUARE}, "../one"), "not a valid file name"),
        (lambda: explorer.saver.save_states({"at": ["1"], "colour": 3}, "x"), "no option colour"),
        (lambda: explorer.saver.file("../config.yaml"), "no file"),
        (lambda: explorer.selection("1,2:50,50:51,50:51,51"), "no particles"),
        (lambda: explorer.selection("1,9:0,0:1,0:1,1"), "motion 9 is not in this run"),
        (lambda: inside_polygon(explorer.run, "1,2:0,0:1,1"), "at least three corners"),
        (lambda: explorer.state([0.0] * 9), "9 coordinates, but the run has 3 motions"),
        (lambda: explorer.colours("nonsense"), "no column nonsense"),
        (lambda: explorer.points([1, 2], "half 3"), "unknown group 'half 3'"),
    ):
        with pytest.raises(InputError, match=message):
            action()


def test_views_are_kept_in_the_run_until_one_is_damaged(explorer, folder):
    view = {"plot": "pairs", "plane": [2, 1], "at": [0.5, -0.25, 0.0]}
    explorer.saver.save_view(view, "front")
    assert Explorer(Run(folder), reporter=QUIET).saver.views().values == {"views": {"front": view}}
    with pytest.raises(InputError, match="already exists"):
        explorer.saver.save_view(view, "front")
    (folder / "analysis" / "views" / "front.json").write_text("{")
    with pytest.raises(InputError, match=r"front.json cannot be read .*; remove it"):
        explorer.saver.views()
