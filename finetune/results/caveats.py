"""Caveats: known facts that limit what an accuracy says about new photos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from finetune.core.text import plural

_KINDS = (
    *("trained_on", "leak", "two_classes", "look_alike", "corrected", "selection"),
    *("missing_class", "few_photos", "calibration", "unchecked"),
)
"""Kinds of caveats, the most serious first."""
FEW_PHOTOS = 10
"""Number of scored photos of a class below which its recall is only a rough estimate."""


@dataclass(frozen=True)
class Caveat:
    """A fact that limits what an accuracy says about new photos.

    Attributes:
        kind: Stable identifier: ``trained_on``, ``leak``, ``two_classes``, ``look_alike``,
            ``corrected``, ``selection``, ``missing_class``, ``few_photos``, ``calibration`` or
            ``unchecked``.
        text: The fact and what follows from it, in one sentence.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class ScoredPhotos:
    """Photos that an accuracy was measured on, and what is known of them.

    Attributes:
        noun: ``training``, ``validation``, ``test``, or empty for those of another folder.
        counts: Number of photos of each class.
        leaked: Number of photos that are also training photos.
        top1_without: Top-1 without these; None if it is not known, or if there are no others.
        alike: Number of other photos that look like a training photo.
        in_two_classes: Number of photos, training photos included, in more than one class.
        corrected: Number of photos whose label ``data.corrections`` has changed.
        chose: What was chosen by the accuracy on these photos, such as ``the epoch``.
        fitted_temperature: Whether the temperature was fitted on these photos.
        unchecked: Why they were not compared with the training photos; empty if they were.
    """

    noun: str
    counts: Mapping[str, int]
    leaked: int = 0
    top1_without: float | None = None
    alike: int = 0
    in_two_classes: int = 0
    corrected: int = 0
    chose: Sequence[str] = ()
    fitted_temperature: bool = False
    unchecked: str = ""

    @property
    def total(self) -> int:
        """Number of all photos."""
        return sum(self.counts.values())

    def number(self, count: int) -> str:
        """Return a number of these photos with their noun."""
        return plural(count, f"{self.noun} photo".lstrip())


def caveats_of(photos: ScoredPhotos) -> tuple[Caveat, ...]:
    """Return the caveats of an accuracy, the most serious first."""
    texts = {
        "trained_on": _trained_on(photos),
        "leak": _leak(photos),
        "two_classes": _two_classes(photos),
        "look_alike": _look_alike(photos),
        "corrected": _corrected(photos),
        "selection": _selection(photos.chose),
        "missing_class": _missing_class(photos),
        "few_photos": _few_photos(photos),
        "calibration": _calibration(photos),
        "unchecked": _unchecked(photos),
    }
    return in_order(Caveat(kind, text) for kind, text in texts.items() if text)


def in_order(caveats: Iterable[Caveat]) -> tuple[Caveat, ...]:
    """Return caveats in the order of their kinds, the most serious first."""
    return tuple(sorted(caveats, key=lambda caveat: _KINDS.index(caveat.kind)))


def with_choices(caveats: Sequence[Caveat], *chose: str) -> tuple[Caveat, ...]:
    """Return caveats of an accuracy by which, as it turned out, this was chosen."""
    others = [caveat for caveat in caveats if caveat.kind != "selection"]
    return in_order([*others, Caveat("selection", _selection(chose))])


def _trained_on(photos: ScoredPhotos) -> str:
    if photos.noun != "training":
        return ""
    return "The network was trained on these photos: this figure says nothing about new photos."


def _leak(photos: ScoredPhotos) -> str:
    if not photos.leaked:
        return ""
    are = "is also a training photo" if photos.leaked == 1 else "are also training photos"
    what = f"{photos.leaked:,} of {photos.number(photos.total)} {are}"
    if photos.leaked == photos.total:
        return f"{what}: this figure says nothing about new photos."
    if photos.top1_without is None:
        return f"{what}: this figure is too high for new photos."
    rest = photos.total - photos.leaked
    right = round(photos.top1_without * rest)
    return f"{what}: without them, top-1 is {photos.top1_without:.2%} ({right:,} of {rest:,})."


def _two_classes(photos: ScoredPhotos) -> str:
    if not photos.in_two_classes:
        return ""
    if photos.in_two_classes == 1:
        return "1 photo is in more than one class: at least one of its labels is wrong."
    return (
        f"{photos.in_two_classes:,} photos are in more than one class: at least one label of each "
        "is wrong."
    )


def _look_alike(photos: ScoredPhotos) -> str:
    if not photos.alike:
        return ""
    looks = "looks" if photos.alike == 1 else "look"
    return (
        f"{photos.alike:,} of {photos.number(photos.total)} {looks} nearly like a training photo: "
        "if they show the same thing, this figure is too high (`finetune check-data` lists them)."
    )


def _corrected(photos: ScoredPhotos) -> str:
    if not photos.corrected:
        return ""
    have = "has a corrected label" if photos.corrected == 1 else "have corrected labels"
    return (
        f"{photos.corrected:,} of {photos.number(photos.total)} {have}: compare this figure only "
        "with others on the same labels."
    )


def _selection(chose: Sequence[str]) -> str:
    if not chose:
        return ""
    return f"These photos chose {' and '.join(chose)}: expect slightly less on new photos."


def _missing_class(photos: ScoredPhotos) -> str:
    missing = [name for name, count in photos.counts.items() if not count]
    if not missing:
        return ""
    none = f"no {photos.number(2).partition(' ')[2]}"
    if len(missing) == 1:
        return f"Class {missing[0]!r} has {none}: this figure says nothing about it."
    return f"{len(missing):,} classes have {none}: this figure says nothing about them."


def _few_photos(photos: ScoredPhotos) -> str:
    few = {name: count for name, count in photos.counts.items() if 0 < count < FEW_PHOTOS}
    if not few:
        return ""
    if len(few) == 1:
        ((name, count),) = few.items()
        return (
            f"Class {name!r} has only {photos.number(count)}: its recall is only a rough estimate."
        )
    return (
        f"{len(few):,} of {len(photos.counts):,} classes have fewer than "
        f"{photos.number(FEW_PHOTOS)}: their recall is only a rough estimate."
    )


def _calibration(photos: ScoredPhotos) -> str:
    if not photos.fitted_temperature:
        return ""
    return (
        "The temperature was fitted on these photos: expect a slightly larger calibration error "
        "on new photos."
    )


def _unchecked(photos: ScoredPhotos) -> str:
    if not photos.unchecked:
        return ""
    return (
        "It is not known whether training photos are among these photos, since the training photos "
        f"cannot be listed: {photos.unchecked}."
    )
