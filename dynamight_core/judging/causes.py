"""Why particles differ: each possible cause has a test, a number with an error, a sentence and a next step."""

import math
from dataclasses import dataclass, replace

import torch

from dynamight_core.judging.composition import Composition
from dynamight_core.judging.duplicates import Duplicates
from dynamight_core.judging.explanations import CONTENT, MOTION, POSE, Comparison
from dynamight_core.judging.transfer import Transfer
from dynamight_core.judging.verdict import SIGMAS, Verdict, is_nothing, mean_and_error, per_group

COMPOSITION, POSES, JUNK, DUPLICATES, TOO_LITTLE, CTF = (
    "composition",
    "poses",
    "junk",
    "duplicates",
    "too little data",
    "ctf",
)
SUSPECTED = "suspected"
# Standard errors that raise a suspicion.
_HINT = 2.0
# Part of the motion's gain that a cause explains by itself where it replaces the motion, or that motion keeps beside a
# better explanation; from which errors of poses replace motion, whatever it adds; and that they add to a motion
# where both are there.
_ENOUGH, _MOSTLY, _BESIDE = 0.5, 0.87, 0.15
# Part from which poses leave a motion undecided, unless it adds this many standard errors to them.
_LARGELY, _CLEARLY = 0.6, 3.5
# Relatives in this fraction of the particles change a resolution; errors of the defocus of this size are common.
_MANY_RELATIVES, _COMMON_DEFOCUS = 0.01, 0.015
_NOTHING_SEEN = "If you expect motion, check poses and CTFs, mask the flexible region, or add particles."
# Twice smaller motion needs this many times the particles: the limit falls with the fourth root of their number.
_HALF_LIMIT = 16


@dataclass
class Cause:
    """One possible cause of differences between particles.

    Parameters
    ----------
    name
        of the cause.
    value, error, unit
        the number that its test measures.
    found
        True, False, or "suspected".
    sentence
        for the user.
    next_step
        what to do; empty if the cause is not found.
    """

    name: str
    value: float
    error: float
    unit: str
    found: bool | str
    sentence: str
    next_step: str


@dataclass
class Evidence:
    """What the tests of causes measured.

    Parameters
    ----------
    comparisons
        of both half-sets.
    groups
        (v,) groups of relatives of the compared particles, which count once.
    molecules
        (v,) whether images of the compared particles show the molecule.
    pose_error, pose_error_error
        rms error of the orientations, degrees, and its standard error.
    rigid
        share of the displacements that one rotation and translation of the whole molecule explains.
    composition
        two groups, where content varies; None where it does not.
    duplicates, transfer
        results of these tests.
    unseen
        detection limit, A rms.
    particles
        number of all particles.
    """

    comparisons: tuple[Comparison, Comparison]
    groups: torch.Tensor
    molecules: torch.Tensor
    pose_error: float
    pose_error_error: float
    rigid: float
    composition: Composition | None
    duplicates: Duplicates
    transfer: Transfer
    unseen: float
    particles: int

    def gain(self, better: tuple[str, ...], than: tuple[str, ...] = ()) -> "Gain":
        """Return the mean gain of one explanation over another on held-out pixels, for images of the molecule."""
        return gain_of(self.comparisons, self.groups, better, than, self.molecules)

    def gain_of_all(self, better: tuple[str, ...], than: tuple[str, ...] = ()) -> "Gain":
        """Return the same for all images."""
        return gain_of(self.comparisons, self.groups, better, than)

    def gains(self) -> dict[str, list[float]]:
        """Return the gains, and their errors, that decide, by name."""
        pairs = {
            "motion": ((MOTION,), ()),
            "poses": ((POSE,), ()),
            "content": ((CONTENT,), ()),
            "motion beyond poses": ((MOTION, POSE), (POSE,)),
            "poses beyond motion": ((MOTION, POSE), (MOTION,)),
            "motion beyond content": ((MOTION, CONTENT), (CONTENT,)),
            "content beyond motion": ((MOTION, CONTENT), (MOTION,)),
        }
        found = {name: self.gain(*pair) for name, pair in pairs.items()}
        return {name: [gain.mean, gain.error] for name, gain in found.items()}


@dataclass(frozen=True)
class Gain:
    """A mean over images, nats, and its standard error."""

    mean: float
    error: float

    def exceeds(self, sigmas: float) -> bool:
        """Return whether the gain is above zero by a number of standard errors."""
        return self.mean > 0 and self.mean > sigmas * self.error


def gain_of(
    comparisons: tuple[Comparison, Comparison],
    groups: torch.Tensor,
    better: tuple[str, ...],
    than: tuple[str, ...],
    chosen: torch.Tensor | None = None,
) -> Gain:
    """Return the mean gain of one explanation over another for chosen particles; `groups` as in `Evidence`."""
    gains = torch.cat([comparison.gain(better, than) for comparison in comparisons])
    if chosen is not None:
        gains, groups = gains[chosen], groups[chosen]
    return Gain(*mean_and_error(per_group(gains, groups)))


def find_causes(verdict: Verdict, evidence: Evidence) -> list[Cause]:
    """Return all causes that are tested for, found or not; `verdict` is that of motion alone."""
    causes = [_composition(evidence), _poses(evidence)]
    replacing = [cause for cause in causes if cause.found and _replaces(evidence, cause.name)]
    if len(replacing) > 1:
        # Each explains some of what the other does: the better one is the cause.
        weaker = min(replacing, key=lambda cause: evidence.gain(_KINDS[cause.name]).mean)
        causes[causes.index(weaker)] = replace(weaker, found=False, next_step="")
    causes += [_duplicates(evidence), _transfer(evidence)]
    others = any(cause.found is True and cause.name != DUPLICATES for cause in causes)
    return [*causes, _too_little(verdict, evidence, others)]


def with_rivals(verdict: Verdict, evidence: Evidence, causes: list[Cause]) -> Verdict:
    """Return the verdict on motion beside other causes: where they explain the same, it needs to gain beyond these."""
    found = {cause.name: cause for cause in causes if cause.found}
    for name in (JUNK, COMPOSITION, POSES):
        cause = found.get(name)
        if cause is None:
            continue
        kinds = _KINDS[name]
        beyond, motion = evidence.gain((MOTION, *kinds), kinds), evidence.gain((MOTION,))
        # In images without the molecule, anything can be learned.
        doubtful = name == JUNK and not (motion.exceeds(SIGMAS) and beyond.exceeds(SIGMAS))
        replaced = doubtful or _replaces(evidence, name)
        # What a better explanation leaves of a gain may be what it describes badly itself.
        weak = evidence.gain(kinds).mean > motion.mean and beyond.mean < _ENOUGH * motion.mean
        if replaced or (cause.found is True and weak):
            nothing = replaced and (is_nothing(beyond.mean, beyond.error) or cause.found is True)
            return replace(
                verdict,
                verdict="not supported" if nothing else "undecided",
                sentence=f"{'Not motion' if nothing else 'Undecided whether the motion is real'}: "
                f"{cause.sentence.rstrip('.')}. {_compared(verdict, evidence, name)}",
                cause=name,
            )
        own_beats_others = verdict.gain - verdict.null > SIGMAS * max(verdict.gain_error, verdict.null_error)
        if cause.found is True and verdict.verdict == "undecided" and own_beats_others and beyond.exceeds(SIGMAS):
            text = f"Motion is supported beside another cause: {cause.sentence.rstrip('.')}."
            return replace(verdict, verdict="supported", sentence=f"{text} {_compared(verdict, evidence, name)}")
    return verdict


def _compared(verdict: Verdict, evidence: Evidence, name: str) -> str:
    """Return a sentence with the gains of motion and of a rival."""
    kinds, words = _KINDS[name], _WORDS[name]
    return (
        f"On held-out Fourier pixels of {verdict.particles} held-out particles, {words} alone gain "
        f"{_show(evidence.gain_of_all(kinds))} nats, motion alone {_show(evidence.gain((MOTION,)))}, and motion adds "
        f"{_show(evidence.gain((MOTION, *kinds), kinds))} to {words}."
    )


_KINDS: dict[str, tuple[str, ...]] = {COMPOSITION: (CONTENT,), JUNK: (CONTENT,), POSES: (POSE,)}
_WORDS = {COMPOSITION: "differences in composition", JUNK: "images without the molecule", POSES: "errors of poses"}


def _show(gain: Gain) -> str:
    return f"{gain.mean:.2f} +- {gain.error:.2f}"


def _replaces(evidence: Evidence, name: str) -> bool:
    """Return whether a cause explains images, and motion nothing beyond it."""
    kinds = _KINDS.get(name)
    if kinds is None or not evidence.gain(kinds).exceeds(_HINT):
        return False
    if name == POSES:
        alone, motion = evidence.gain(kinds).mean, evidence.gain((MOTION,)).mean
        adds = evidence.gain((MOTION, *kinds), kinds).exceeds(_CLEARLY)
        return _excess_of_poses(evidence) > 0 or (alone > _LARGELY * motion and not adds)
    return not evidence.gain((MOTION, *kinds), kinds).exceeds(SIGMAS)


def _excess_of_poses(evidence: Evidence) -> float:
    """Return what changed poses explain over nearly all that a deformation does, nats; negative where there is motion.

    A deformation has more parameters, some of which describe a rotation of the whole better than one. But a part that
    moves also changes the most probable poses, which then explain much of it.
    """
    return evidence.gain((POSE,)).mean - _MOSTLY * evidence.gain((MOTION,)).mean


def _adds(evidence: Evidence, name: str, sigmas: float) -> bool:
    """Return whether a cause explains more than motion, and both more than nothing: motion can do harm."""
    gain = evidence.gain if name == POSES else evidence.gain_of_all
    both = MOTION, *_KINDS[name]
    beyond = gain(both, (MOTION,))
    # What a motion leaves of itself looks like small errors of poses.
    enough = name != POSES or beyond.mean > _BESIDE * gain((MOTION,)).mean
    return enough and beyond.exceeds(sigmas) and gain(both).exceeds(sigmas)


def _found(evidence: Evidence, name: str) -> bool | str:
    """Return whether a rival of motion is found, by what it gains with motion and without."""
    kinds = _KINDS[name]
    alone, motion = evidence.gain(kinds), evidence.gain((MOTION,))
    if _adds(evidence, name, SIGMAS):
        return True
    if not _replaces(evidence, name) or not (alone.exceeds(SIGMAS) or motion.exceeds(_HINT)):
        return False
    enough = _excess_of_poses(evidence) > 0 if name == POSES else alone.mean > _ENOUGH * motion.mean
    return True if alone.exceeds(SIGMAS) and enough else SUSPECTED


def _composition(evidence: Evidence) -> Cause:
    groups, gain = evidence.composition, evidence.gain_of_all((CONTENT,))
    name = JUNK if groups is not None and groups.empty else COMPOSITION
    found: bool | str = False
    if groups is not None and groups.distinct:
        # Two groups are evidence by themselves.
        found = _adds(evidence, name, _HINT) or (gain.exceeds(_HINT) and _replaces(evidence, name))
    elif groups is not None and groups.differs and _found(evidence, name):
        found = SUSPECTED
    if groups is None or not found:
        text = f"no differences in composition are seen (gain {_show(gain)} nats)."
        return Cause(name, 0.0, 0.0, "fraction of particles", False, text, "")
    if found == SUSPECTED:
        text = f"{_WORDS[name]} are suspected: they gain {_show(gain)} nats, but there are no two groups."
        return Cause(name, 0.0, 0.0, "fraction of particles", found, text, "Classify the particles first.")
    fraction = groups.fraction
    error = math.hypot(groups.mixed, math.sqrt(fraction * (1 - fraction) / evidence.particles))
    some = f"{100 * fraction:.0f} +- {100 * error:.0f} %"
    if name == JUNK:
        text = f"{_WORDS[name]}: {some} of the images lack most of its density."
        step = "Train again with the others (RUN/analysis/composition/group1.star)."
    else:
        less = 100 * (1 - groups.mass[1] / groups.mass[0])
        text = f"{_WORDS[name]}: {some} of the particles have {less:.0f} % less mass than the others."
        step = "Train each group by itself (RUN/analysis/composition/group1.star, group2.star)."
    return Cause(name, fraction, error, "fraction of particles", found, text, step)


def _poses(evidence: Evidence) -> Cause:
    found = _found(evidence, POSES)
    value, error = evidence.pose_error, evidence.pose_error_error
    if not found:
        text = f"no errors of poses are seen (gain {_show(evidence.gain((POSE,)))} nats)."
        return Cause(POSES, value, error, "degrees", False, text, "")
    text = (
        f"errors of poses: orientations are wrong by {value:.1f} +- {error:.1f} degrees rms; one rotation and "
        f"translation of the whole molecule explains {100 * evidence.rigid:.0f} % of the displacements."
    )
    return Cause(POSES, value, error, "degrees", found, text, "Train again with --refine-poses.")


def _duplicates(evidence: Evidence) -> Cause:
    found_by = evidence.duplicates
    value, error = found_by.fraction, found_by.error
    found = True if value > _MANY_RELATIVES else SUSPECTED if value > 0 else False
    if not found:
        return Cause(DUPLICATES, 0.0, error, "fraction of particles", False, "no image is in both half-sets.", "")
    text = (
        f"duplicates across half-sets: {100 * value:.1f} +- {100 * error:.1f} % of the particles have a relative in "
        f"the other half-set ({found_by.reason}); the resolution is too good."
    )
    step = "Remove duplicates, or put them in one half-set (rlnRandomSubset), and refine again."
    return Cause(DUPLICATES, value, error, "fraction of particles", found, text, step)


def _transfer(evidence: Evidence) -> Cause:
    transfer = evidence.transfer
    better = {name: Gain(transfer.gains[name], transfer.errors[name]) for name in transfer.gains}
    name = max(better, key=lambda other: better[other].mean)
    if better[name].exceeds(SIGMAS):
        done = {"flipped": "phase-flipped", "premultiplied": "multiplied by their CTF"}[name]
        text = (
            f"CTF: images fit the map better, by {_show(better[name])} nats, if they were {done}, which the STAR file "
            "does not say."
        )
        step = "Extract the particles again without phase flipping." if name == "flipped" else "Set --premultiplied."
        return Cause(CTF, better[name].mean, better[name].error, "nats", True, text, step)
    factor, error = transfer.defocus, transfer.defocus_error
    off = abs(factor - 1)
    if off > SIGMAS * error and off > _COMMON_DEFOCUS:
        text = (
            f"CTF: images fit best with {factor:.3f} +- {error:.3f} times the defocus; the pixel size would be wrong "
            f"by {100 * (math.sqrt(factor) - 1):.1f} %."
        )
        step = "Check pixel size, voltage and spherical aberration."
        return Cause(CTF, factor, error, "times the defocus", SUSPECTED, text, step)
    return Cause(CTF, factor, error, "times the defocus", False, "the CTF fits the images.", "")


def _too_little(verdict: Verdict, evidence: Evidence, explained: bool) -> Cause:
    limit = evidence.unseen
    if verdict.verdict == "supported" or explained:
        return Cause(TOO_LITTLE, limit, 0.0, "A rms", False, "there are enough particles for this conclusion.", "")
    text = f"motion of up to {limit:.1f} A rms over the molecule could go undetected at this noise level"
    if verdict.verdict == "undecided" and verdict.gain > 0:
        needed = evidence.particles * max(1.0, (SIGMAS * verdict.gain_error / verdict.gain) ** 2)
        text += f"; with the gain seen here, about {_rounded(needed)} particles would decide"
        return Cause(TOO_LITTLE, limit, 0.0, "A rms", True, text + ".", f"Use at least {_rounded(needed)} particles.")
    needed = _HALF_LIMIT * evidence.particles
    text += f"; {limit / 2:.1f} A would be seen with about {_rounded(needed)} particles"
    return Cause(TOO_LITTLE, limit, 0.0, "A rms", SUSPECTED, text + ".", _NOTHING_SEEN)


def _rounded(number: float) -> str:
    """Return a number with two digits."""
    digits = max(0, math.floor(math.log10(number)) - 1)
    return f"{round(number / 10**digits) * 10**digits:,.0f}"
