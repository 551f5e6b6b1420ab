"""The one conclusion of a run, in the words that every page, table and program shows.

Verdict, causes, controls, maps and domains each know a part, and can disagree. They are read together here, and nothing
else tells a user what to believe or what to do: what moves and by how much, how sure that is, what the map gained
there, and what to do now.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.judging.bias import is_joint
from dynamight_core.judging.evidence import DENSITIES, GAINS, read_controls, read_resolutions, read_rows
from dynamight_core.model.motions import moving_points
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.run import Run

SUPPORTED, UNDECIDED, NOT_SUPPORTED = "supported", "undecided", "not supported"
# Standard errors by which a difference counts, and fraction of the rigid density from which a region counts as rigid.
_SIGMAS, _KEPT = 2.0, 0.95
# Fraction of the variance from which a motion is counted, and domains that are named at most.
_COUNTED, _NAMED = 0.01, 3
# What looks like motion and is none.
_INSTEAD = {
    "composition": "Differences in composition",
    "junk": "Images without the molecule",
    "poses": "Errors of poses",
}
# What explains the images in their place, and its gains among the evidence.
_RIVALS = {
    "composition": ("Differing masses of regions", "content", "motion beyond content"),
    "junk": ("In images of the molecule, differing masses of regions", "content", "motion beyond content"),
    "poses": ("Changed poses", "poses", "motion beyond poses"),
}
_HELD_OUT = {"improves the map": "also improves", "harms the map": "harms", "no difference": "does not change"}
_TITLES = {SUPPORTED: "The molecule moves", UNDECIDED: "Undecided whether it moves", NOT_SUPPORTED: "No motion found"}
# After a full stop and before a capital: numbers have points as well.
_SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")
_JOINT = "A control only: one model was trained on both half-sets"


@dataclass(frozen=True)
class Conclusion:
    """What a run shows, and what to do with it.

    Parameters
    ----------
    motion
        "supported", "undecided" or "not supported", after all that is known of the run.
    title
        a few words.
    moves
        sentences on what moves and by how much.
    certainty
        sentences on how sure that is.
    map
        sentences on the delivered map, and on what it gained where the molecule moves.
    advice
        sentences on what to do now.
    """

    motion: str
    title: str
    moves: str
    certainty: str
    map: str
    advice: str

    @property
    def lead(self) -> str:
        """What moves and by how much; or else the first sentence on why that is not said."""
        return self.moves or _SENTENCE_END.split(self.certainty, 1)[0]

    @property
    def lines(self) -> list[str]:
        """The conclusion as lines of text: title, motion, certainty, map and advice."""
        return [f"{self.title}.", *filter(None, (self.moves, self.certainty, self.map, self.advice))]


def conclude(run: Run) -> Conclusion:
    """Return the conclusion of a run from all of its files so far.

    Raises
    ------
    InputError
        if the result of a control cannot be read.
    """
    summary, controls = run.summary, read_controls(run.path)
    causes = [cause for cause in summary.get("causes", []) if cause["found"]]
    motion, title, doubts = _motion(summary, controls, causes)
    if is_joint(run):
        motion, title = UNDECIDED if motion == SUPPORTED else motion, _JOINT
        doubts.append("No independent model confirms the motion.")
    folder = Path(run.path) / "reconstruction"
    delivered, compared = _map(run, folder)
    return Conclusion(
        motion,
        title,
        _moves(run, motion),
        # What speaks against motion comes first: where there is none, it is the answer.
        " ".join([*doubts, *_certainty(summary, controls)]),
        delivered,
        _advice(run, motion, causes, folder, compared),
    )


def record_conclusion(run: Run, reporter: Reporter = QUIET) -> Conclusion:
    """Write the conclusion to RUN/analysis/summary.json, tell it, and return it."""
    conclusion = conclude(run)
    summary = run.summary
    found = asdict(conclusion) | {"lines": conclusion.lines}
    if summary.get("conclusion") != found:
        summary["conclusion"] = found
        with atomic_path(Path(run.path) / "analysis" / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1))
    for number, line in enumerate(conclusion.lines):
        reporter.say(f"Conclusion: {line}" if number == 0 else f"  {line}")
    return conclusion


def require_motion(run: Run, allowed: bool, reporter: Reporter) -> None:
    """Say first that the motion of a run is not supported, and refuse to use it unless that is allowed.

    Raises
    ------
    InputError
        if the conclusion is other than "supported" and `allowed` is False.
    """
    conclusion = conclude(run)
    if conclusion.motion == SUPPORTED:
        return
    reason = f"{conclusion.title}. {conclusion.certainty}".rstrip(".")
    if not allowed:
        raise InputError(f"{reason}; set --use-unsupported-motion to write these results all the same")
    reporter.warn(f"{reason}. These results may show noise")


def shared_motions(run: Run) -> list[int]:
    """Return the numbers, from 1, of the motions that both half-sets find; all where that was not measured."""
    n = len(run.motions.components)
    return [number for number in run.summary.get("shared_motions", range(1, n + 1)) if number <= n]


def counted_motions(run: Run) -> list[int]:
    """Return the numbers of the shared motions that are more than a trace of the whole."""
    return [number for number in shared_motions(run) if run.motions.shares[number - 1] >= _COUNTED]


def _motion(
    summary: dict[str, Any], controls: dict[str, dict[str, Any]], causes: list[dict[str, Any]]
) -> tuple[str, str, list[str]]:
    """Return whether motion is supported after all, a title, and sentences on what speaks against the verdict."""
    verdict = summary["verdict"]
    motion, doubts = verdict["verdict"], [_sentence(cause["sentence"]) for cause in causes]
    title = _TITLES[motion]
    if verdict.get("cause"):
        sure = motion == NOT_SUPPORTED and all(c["found"] is True for c in causes if c["name"] == verdict["cause"])
        title = f"{_INSTEAD[verdict['cause']]}{', not motion' if sure else ', perhaps no motion'}"
    if motion != SUPPORTED:
        return motion, title, doubts
    if controls.get("shuffled-latents", {}).get("verdict") == "not from the motion":
        motion, title = UNDECIDED, _TITLES[UNDECIDED]
        doubts.append("Deformations permuted among the particles improve the map as much as their own.")
    if summary.get("shared_motions") == []:
        motion, title = UNDECIDED, _TITLES[UNDECIDED]
        doubts.append("The two half-sets do not share a motion on held-out particles.")
    return motion, title, doubts


def _moves(run: Run, motion: str) -> str:
    """Return what moves and by how much."""
    summary = run.summary
    if motion == NOT_SUPPORTED:
        # Told among the causes as well.
        return ""
    domains = read_rows(Path(run.path) / "analysis" / "domains" / "domains.csv", "domain")
    if motion == UNDECIDED or len(domains) < 2:
        seen = _moving_part(np.asarray(summary["point_motion"]), np.asarray(summary["point_error"]))
    else:
        moving = sorted((row for number, row in domains.items() if number > 1), key=lambda row: -row["motion_A"])
        parts = [
            f"domain {row['domain']} ({100 * row['share_of_points']:.0f} % of the molecule) moves by "
            f"{row['motion_A']:.1f} A rms and {row['angle_std_deg']:.0f} degrees (standard deviation; the uncertainty "
            f"for one particle is {row['error_A']:.1f} A)"
            for row in moving[:_NAMED]
        ]
        more = f"; {len(moving) - _NAMED} more domains move less" if len(moving) > _NAMED else ""
        seen = f"Relative to domain 1, the largest, {'; '.join(parts)}{more}."
    if motion == UNDECIDED:
        return f"If it is real: {seen[0].lower()}{seen[1:]}"
    shared = counted_motions(run)
    numbers = ", ".join(map(str, shared))
    count = f"Both half-sets find motion{'s' if len(shared) > 1 else ''} {numbers}" if shared else ""
    return f"{seen} {count}." if count and "shared_motions" in summary else seen


def _moving_part(motion: np.ndarray, error: np.ndarray) -> str:
    """Return in words what part of (m,) points moves, from their motion and its error, A rms."""
    moving = moving_points(torch.from_numpy(motion)).numpy()
    size, uncertainty = (np.sqrt((values[moving] ** 2).mean()) for values in (motion, error))
    by = f"by {size:.1f} A rms about the mean, with an uncertainty of {uncertainty:.1f} A for one particle"
    if moving.all():
        return f"All of the molecule moves {by}."
    rest = np.sqrt((motion[~moving] ** 2).mean())
    return f"A part with {100 * moving.mean():.0f} % of the molecule moves {by}; the rest by {rest:.1f} A rms."


def _certainty(summary: dict[str, Any], controls: dict[str, dict[str, Any]]) -> list[str]:
    """Return sentences on how sure the motion is: held-out images, agreement of the half-sets, controls."""
    found = summary["verdict"]
    model = summary.get("model", {})
    shown = "particles" if model.get("images", 0) > sum(model.get("particles", [])) else "images"
    lines = [
        f"Held-out {shown} ({found['particles']}) are explained {_by(found['gain'], found['gain_error'])} with each "
        f"particle's own deformation, and {_by(found['null'], found['null_error'])} with another particle's."
    ]
    if found.get("cause") and "evidence" in summary:
        words, alone, beyond = _RIVALS[found["cause"]]
        gains = [
            f"{mean:+.2f} +- {error:.2f}" for mean, error in (summary["evidence"][alone], summary["evidence"][beyond])
        ]
        lines.append(f"{words} alone gain {gains[0]} nats, and motion adds {gains[1]} to that.")
    correlation = (summary.get("motion_correlations") or [None])[0]
    if correlation is not None:
        lines.append(f"The half-sets' coordinates along motion 1 correlate by {correlation:.2f} on these.")
    shuffled = controls.get("shuffled-latents", {})
    if shuffled.get("verdict") == "from the motion":
        lines.append("Deformations permuted among the particles do not improve the map as much.")
    elif shuffled.get("verdict") == "partly from the motion":
        lines.append("Part of the map's improvement is also there with deformations permuted among the particles.")
    held_out = controls.get("held-out", {}).get("verdict")
    if held_out in _HELD_OUT:
        lines.append(f"Deformation {_HELD_OUT[held_out]} the map of held-out particles.")
    return lines


def _by(gain: float, error: float) -> str:
    """Return a gain in log-likelihood in words: "better by 0.73 +- 0.07 nats"."""
    if abs(gain) <= _SIGMAS * error:
        return f"equally well ({gain:+.2f} +- {error:.2f} nats)"
    return f"{'better' if gain > 0 else 'worse'} by {abs(gain):.2f} +- {error:.2f} nats"


def _map(run: Run, folder: Path) -> tuple[str, str]:
    """Return sentences on the map in a folder, and how it is where the molecule moves: "better", "worse" or "alike".

    The latter is empty where there is no map with motion corrected, or nothing to compare it with.
    """
    found, rigid = read_resolutions(folder / "fsc.star"), read_resolutions(folder / "rigid" / "fsc.star")
    if found is None:
        return "", ""
    whole = f"The map has a resolution of {found[0]:.1f} A"
    if is_joint(run):
        return f"{whole}, which is overestimated: both half-maps come from one model.", ""
    if np.isfinite(found[1]):
        whole += f" ({found[1]:.1f} A conservatively)"
    if not run.config.stages.get("reconstruct", {}).get("motion_used", True):
        return f"{whole}; it is made without deformation.", ""
    if rigid is None:
        return f"{whole}; it was not compared with a map without deformation.", ""
    gains = read_rows(folder / GAINS, "region")
    densities = read_rows(folder / DENSITIES, "region")
    name = "moving" if "moving" in gains else "molecule"
    if name not in gains:
        return f"{whole}, and {rigid[0]:.1f} A without deformation.", ""
    gain, error = gains[name]["fsc_gain"], gains[name]["fsc_gain_error"]
    where = "In the moving part" if name == "moving" else "Over the molecule"
    numbers = f"mean FSC of the half-maps {gain:+.3f} +- {error:.3f}"
    sizes = densities.get(name, {})
    if sizes.get("rigid", 0) > _KEPT:
        return (
            f"{whole}. {where}, it keeps the density without deformation, on which correction does not improve.",
            "alike",
        )
    if gain > _SIGMAS * error:
        better = f"{where}, it is better than without deformation ({numbers}"
        if {"resolution_A", "rigid_resolution_A"} <= sizes.keys():
            better += f"; {sizes['rigid_resolution_A']:.1f} -> {sizes['resolution_A']:.1f} A"
        return f"{whole}. {better}).", "better"
    if gain < -_SIGMAS * error:
        return f"{whole}. {where}, its half-maps agree less than without deformation ({numbers}).", "worse"
    return f"{whole}. {where}, it is as good as without deformation, within the error ({numbers}).", "alike"


def _advice(run: Run, motion: str, causes: list[dict[str, Any]], folder: Path, compared: str) -> str:
    """Return what to do now."""
    if is_joint(run):
        return (
            "Do not use the map or interpret the motions. Compare the resolution with that of a run of independent "
            "half-sets (--halves independent) to see how much a joint model overestimates it."
        )
    steps = [_sentence(cause["next_step"]) for cause in causes if cause.get("next_step")]
    has_map = (folder / "map.mrc").exists()
    use = f"Use reconstruction/{'rigid/' if compared == 'worse' else ''}map.mrc."
    if motion != SUPPORTED:
        use = use if has_map else "Use the consensus map."
        if not steps:
            if motion == NOT_SUPPORTED:
                steps = ["If you expect motion, check poses and CTFs, mask the flexible region, or add particles."]
            else:
                steps = ["Add particles, or hold out more of them for validation."]
        return " ".join([use, "Do not interpret the motions.", *steps])
    if not has_map:
        return " ".join([*steps, "Reconstruct the map with motion corrected (reconstruct)."])
    if compared == "alike":
        use += " Look at maps of states for what moves (states), not at finer detail in this map."
    if not (Path(run.path) / "analysis" / "domains" / "domains.csv").exists():
        steps.append("Divide the motion into domains, and write the report (analyse).")
    else:
        steps.append("Look at states along the motion (states) and refine subsets of particles (select).")
    return " ".join([use, *steps])


def _sentence(text: str) -> str:
    """Return a text as a sentence: with a capital and one full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
