"""Stand-ins for CTFFIND and RELION, which are not installed where the tests run.

They read and write the files that Scipion's protocols hand over: CTFFIND's text, cut-out particles, a refinement's
tables and maps. What they "find" is what was simulated. They show that files, numbers and relations are handed on, and
nothing about what the real programs make of them.
"""

import json
import sys
from pathlib import Path

HEAD = """#!{python}
import json, os, shutil, sys
import numpy as np
import mrcfile, starfile
TRUTH = json.load(open({truth!r}))
words = dict(zip(sys.argv[1:], sys.argv[2:]))
"""

CTFFIND = """
lines = [line.strip() for line in sys.stdin]
micrograph, psd = lines[0], lines[1]
name = os.path.splitext(os.path.basename(micrograph))[0]
u, v, angle = TRUTH["ctf"][name]
with mrcfile.new(psd, overwrite=True) as mrc:
    mrc.set_data(np.zeros((8, 8), np.float32))
stem = os.path.splitext(psd)[0]
with open(stem + ".txt", "w") as file:
    file.write("# Output from CTFFind version 4.1.14, run on 2026-11-28 12:00:00\\n")
    file.write(f"# Input file: {micrograph} ; Number of micrographs: 1\\n")
    file.write(f"# Pixel size: {float(lines[2]):.3f} Angstroms ; acceleration voltage: {float(lines[3]):.1f} keV ; ")
    file.write(f"spherical aberration: {float(lines[4]):.2f} mm ; amplitude contrast: {float(lines[5]):.2f}\\n")
    file.write("# Box size: 512 pixels ; min. res.: 30.0 Angstroms ; max. res.: 5.0 Angstroms ; min. def.: 5000.0 um; ")
    file.write("max. def. 50000.0 um\\n# Columns: #1 - micrograph number; #2 - defocus 1 [Angstroms]; #3 - defocus 2; ")
    file.write("#4 - azimuth of astigmatism; #5 - additional phase shift [radians]; #6 - cross correlation; ")
    file.write("#7 - spacing (in Angstroms) up to which CTF rings were fit successfully\\n")
    file.write(f"1.000000 {u:.6f} {v:.6f} {angle:.6f} 0.000000 0.210000 12.000000\\n")
rows = np.ones((6, 20)) * 0.1
rows[0] = np.linspace(0, 0.5, 20)
np.savetxt(stem + "_avrot.txt", rows, header="Output from CTFFind")
"""

PREPROCESS = """
size = int(words["--extract_size"])
blocks = starfile.read(words["--i"], always_dict=True)
for name in blocks["micrographs"]["rlnMicrographName"]:
    stem = os.path.splitext(name)[0]
    picks = starfile.read(stem + ".coords.star")
    picks = picks if not isinstance(picks, dict) else next(iter(picks.values()))
    with mrcfile.open(name, permissive=True) as mrc:
        image = np.array(mrc.data)
    found = [(round(float(x)), round(float(y))) for x, y in zip(picks["rlnCoordinateX"], picks["rlnCoordinateY"])]
    half = size // 2
    stack = np.stack([image[y - half : y + half, x - half : x + half] for x, y in found]).astype(np.float32)
    with mrcfile.new(stem + ".mrcs", overwrite=True) as mrc:
        mrc.set_data(-stack if "--invert_contrast" in sys.argv else stack)
    picks["rlnImageName"] = [f"{number:06d}@{stem}.mrcs" for number in range(1, len(found) + 1)]
    picks["rlnMicrographName"] = name
    starfile.write({"particles": picks}, stem + "_extract.star", overwrite=True)
"""

REFINE = """
if "--version" in sys.argv:
    sys.exit(print("RELION version: 5.0.0"))
root = words["--o"]
blocks = starfile.read(words["--i"], always_dict=True)
rows = blocks["particles"].sort_values("rlnImageId", ignore_index=True)
for label in TRUTH["labels"]:
    rows[label] = 0.0
for number, row in rows.iterrows():
    name = os.path.splitext(os.path.basename(row["rlnMicrographName"]))[0]
    place = f"{name} {round(row['rlnCoordinateX'])} {round(row['rlnCoordinateY'])}"
    for label, value in zip(TRUTH["labels"], TRUTH["poses"][place]):
        rows.loc[number, label] = value
rows["rlnRandomSubset"] = rows["rlnRandomSubset"].astype(int)
blocks["particles"] = rows
for name in ("_it001_data.star", "_data.star"):
    starfile.write(blocks, root + name, overwrite=True)
n = 16
curve = {"rlnResolution": np.arange(n) / (2 * n * 6.0), "rlnGoldStandardFsc": np.linspace(1, 0, n)}
import pandas as pd
general = {"rlnCurrentResolution": 14.0, "rlnCurrentImageSize": 32}
for name in ("_it001_half1_model.star", "_model.star"):
    starfile.write({"model_general": general, "model_class_1": pd.DataFrame(curve)}, root + name, overwrite=True)
for name, path in zip(("class001", "half1_class001_unfil", "half2_class001_unfil"), TRUTH["maps"]):
    shutil.copyfile(path, f"{root}_{name}.mrc")
"""

POSTPROCESS = """
first = words["--i"]
assert os.path.getsize(first) and os.path.getsize(first.replace("half1", "half2"))
out = words["--o"]
for end in ("", "_masked"):
    shutil.copyfile(first, out + end + ".mrc")
with open(out + ".star", "w") as file:
    file.write("data_general\\n\\n_rlnFinalResolution 12.0\\n_rlnBfactorUsedForSharpening -90.0\\n")
"""

HANDLER = "shutil.copyfile(words['--i'], words['--o'])\n"
# Starts one process of the program that it is given, whatever number is asked for.
MPIRUN = '#!/bin/bash\nshift 2\nexec "$@"\n'


def stub_programs(folder, truth):
    """Write the programs into a folder; return the values of the variables that the plugins look for, by name.

    Parameters
    ----------
    folder
        new folder.
    truth
        dict with `ctf` ([U, V, angle] by micrograph), `labels` and `poses` (values of the labels by "micrograph x y"),
        and `maps` (paths of the refined map and its half-maps).
    """
    relion, ctffind = folder / "relion", folder / "ctffind-5.0.2"
    path = folder / "truth.json"
    for home in (relion, ctffind):
        (home / "bin").mkdir(parents=True)
    path.write_text(json.dumps(truth))
    head = HEAD.format(python=sys.executable, truth=str(path))
    programs = {ctffind / "bin" / "ctffind": head + CTFFIND, relion / "bin" / "mpirun": MPIRUN}
    relions = {"preprocess": PREPROCESS, "refine": REFINE, "postprocess": POSTPROCESS, "image_handler": HANDLER}
    for name, text in relions.items():
        for suffix in ("", "_mpi"):
            programs[relion / "bin" / f"relion_{name}{suffix}"] = head + text
    for program, text in programs.items():
        Path(program).write_text(text)
        Path(program).chmod(0o755)
    # cisTEM itself is not started, but its plugin looks for its folder.
    return {"RELION_HOME": str(relion), "CTFFIND_HOME": str(ctffind), "CISTEM_HOME": str(ctffind)}
