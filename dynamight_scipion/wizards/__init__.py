"""Wizards of the protocols' forms."""

from .wizards import (
    DynamightDiameterWizard,
    DynamightGaussiansWizard,
    DynamightMaskWizard,
    DynamightMotionWizard,
    DynamightPlaneWizard,
    DynamightReachWizard,
    DynamightThresholdWizard,
)

__all__ = [
    "DynamightDiameterWizard",
    "DynamightGaussiansWizard",
    "DynamightMaskWizard",
    "DynamightMotionWizard",
    "DynamightPlaneWizard",
    "DynamightReachWizard",
    "DynamightThresholdWizard",
]
