"""What the versions of the phantom change in its echoes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from echovlsm.phantom.anatomy import Tissue


@dataclass(frozen=True)
class Look:
    """What a version changes in the echoes of every patient; dB."""

    near: float = -39.5
    """Level to which the near field washes tissues out."""
    tilt: float = 0.0
    """Rise of all levels from the probe to the deepest range."""
    echo: Mapping[Tissue, tuple[float, float, float]] = field(default_factory=dict)
    """Added to a tissue's echogenicity: at ED, at ES, and in 2CH more than in 4CH."""

    def added(self, view: str, phase: str) -> np.ndarray:
        """`echo` as an array over tissues, (tissues,)."""
        found = np.zeros(len(Tissue), np.float32)
        for tissue, (diastole, systole, two) in self.echo.items():
            found[tissue] = (diastole if phase == "ED" else systole) + two * (view == "2CH")
        return found


LOOKS: dict[int, Look] = {
    1: Look(),
    2: Look(),
    3: Look(
        near=-33.0,
        tilt=-4.0,
        echo={
            Tissue.LV_CAVITY: (7.0, 9.0, 0.0),
            Tissue.MYOCARDIUM: (4.0, 6.0, 2.5),
            Tissue.LEFT_ATRIUM: (7.0, 0.5, 0.0),
            Tissue.ATRIAL_WALL: (18.0, 14.0, 1.0),
            Tissue.PERICARDIUM: (5.0, 8.0, -3.0),
            Tissue.VALVE: (22.0, 10.0, 4.0),
            Tissue.ANNULUS: (10.0, 9.0, 2.0),
            Tissue.RIGHT_VENTRICLE: (4.0, 9.0, 0.0),
            Tissue.LUNG: (-3.0, 5.0, 0.0),
        },
    ),
}
"""Of each version; that of version 3 brings mean grey levels around the heart near those of CAMUS."""
