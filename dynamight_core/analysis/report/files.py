"""The files of the run, and the commands that wrote them."""

from pathlib import Path

import pandas as pd

from dynamight_core.analysis.report.page import Page, Part

_FILES = {
    "config.yaml": "all options of every stage, versions, checksum of the input",
    "metrics.jsonl": "losses and weights of each epoch and half; seconds and memory of both halves together",
    "training_curves.csv": "curves of the training figure, by half and epoch",
    "particles.star": "input rows with half, validation, latents, motions, rms motion and uncertainty (Å)",
    "latents.safetensors": "latents and their covariances under the decoders of both halves",
    "atomic_model.cif": "the atomic model after rigid fitting into the map",
    "error.log": "details of the error that stopped the run",
    "half1/model.safetensors": "Gaussians and networks of half 1",
    "half2/model.safetensors": "Gaussians and networks of half 2",
    "half1/inverse.safetensors": "inverse deformation network of half 1",
    "half2/inverse.safetensors": "inverse deformation network of half 2",
    "analysis/report.html": "this report",
    "analysis/motions.safetensors": "principal motions at the common points, and the coordinates of all particles",
    "analysis/motion.mrc": "rms motion of each voxel around the molecule (Å)",
    "analysis/motion_error.mrc": "uncertainty of a displacement at each voxel (Å rms)",
    "analysis/motion_beyond_error.mrc": "motion that exceeds its uncertainty (Å rms)",
    "analysis/clusters.csv": "cluster of each particle: Gaussian mixture and k-means",
    "analysis/cluster_centres.csv": "centres and sizes of the clusters",
    "analysis/cluster_criterion.csv": "criterion (BIC) for the number of clusters",
    "analysis/motion1_arrows.bild": "arrows of motion 1, with spheres of their uncertainty at the tips (ChimeraX)",
    "analysis/motion1_arrows.csv": "arrows of motion 1 as a table",
    "analysis/agreement.csv": "agreement between the halves on validation particles",
    "analysis/distributions.csv": "distribution along each motion, corrected for coordinate errors",
    "analysis/distribution_widths.csv": "standard deviations of these distributions",
    "analysis/bodies.csv": "angles and shifts of the rigid bodies in each particle, with uncertainties",
    "analysis/bodies_summary.csv": "one row per rigid body",
    "analysis/relion_bodies.star": "the rigid bodies, for RELION's multi-body refinement",
    "analysis/relion_data.star": "particles with angles and offsets of the bodies, for RELION's multi-body refinement",
    "analysis/embedding.csv": "position of each particle in a plane (UMAP or motions 1 and 2)",
    "analysis/latents.csv": "latents of each particle under the decoders of both half-sets",
    "analysis/gaussians_half1.cif": "Gaussians of half 1, with their motion in the B-factor column",
    "analysis/gaussians_half2.cif": "Gaussians of half 2, with their motion in the B-factor column",
    "analysis/explored.sh": "commands that reproduce what was saved in dynamight explore",
    "analysis/summary.json": "verdict, statistics and warnings",
    "reconstruction/half1_unfil.mrc": "half-map 1, unfiltered and unmasked",
    "reconstruction/half2_unfil.mrc": "half-map 2, unfiltered and unmasked",
    "reconstruction/map.mrc": "mean of the half-maps, filtered",
    "reconstruction/map_sharpened.mrc": "the map, sharpened by its B-factor",
    "reconstruction/local_resolution.mrc": "local resolution (Å)",
    "reconstruction/mask.mrc": "mask for the FSC",
    "reconstruction/fsc.star": "FSC curves",
    "reconstruction/gains.csv": "what the half-maps' FSC gained over the rigid map in each region, with its error",
    "reconstruction/densities.csv": "which density each region has: corrected, of near particles, or rigid",
    "reconstruction/motion_used.mrc": "weight of the densities that use motion, 0 to 1",
}
_RIGID = "reconstruction/rigid/"
# Folders whose files are not listed one by one: states, selections and tables come in dozens.
_FOLDERS = {
    "analysis/states": "maps, movie and coordinates of states",
    "analysis/fields": "deformation fields (.npz, .mrc) and their arrows",
    "analysis/tables": "the values behind these figures",
    "analysis/domains": "masks and motions of the rigid-body domains",
    "analysis/controls": "verdicts and values of the controls",
    "analysis/controls/wrong-model": "the wrong model, and maps from a run trained with it",
    "analysis/controls/held-out": "maps from held-out particles, on the grid of the particles",
}
_VERSIONS = ("dynamight_core", "python", "torch", "numpy", "starfile", "mrcfile")


def files(page: Page) -> Part:
    """Return what every file of the run holds and how large it is, and the commands that wrote them."""
    provenance = page.run.config.provenance
    rows = _list(page.folder)
    checkpoints = [path.stat().st_size for path in page.folder.glob("half*/checkpoints/**/*") if path.is_file()]
    values = {
        "folder": page.folder.resolve(),
        "files": rows,
        "checkpoints": len(checkpoints),
        "checkpoint_size": _size(sum(checkpoints)),
        "provenance": provenance,
        "versions": [f"{name.replace('_', '-')} {provenance[name]}" for name in _VERSIONS if name in provenance],
    }
    table = pd.DataFrame({"file": [f"{name}{more}" for name, more, *_ in rows], "size": [row[3] for row in rows]})
    return Part(values, tables={"files": table})


def _list(folder: Path) -> list[tuple[str, str, str, str]]:
    """Return of each file, or folder of many, its name, how many files it holds, what these hold, and their size."""
    rows = []
    together: dict[str, list[int]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        if name.startswith("analysis/") and name.count("/") > 1:
            together.setdefault(name.rpartition("/")[0], []).append(size)
        elif "checkpoints" not in name:
            what = _FILES.get(name.replace(_RIGID, "reconstruction/"), "")
            rows.append((name, "", f"{what}; no deformation" if _RIGID in name and what else what, _size(size)))
    for name, sizes in together.items():
        rows.append(
            (
                f"{name}/",
                f" {len(sizes)} files",
                _FOLDERS.get(name) or _FOLDERS.get(name.rpartition("/")[0], ""),
                _size(sum(sizes)),
            )
        )
    return rows


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
