"""EchoVLSM: can synthetic echocardiograms teach a vision-language segmentation model what real ones do?

Nothing is imported here: importing the package stays fast, and each module
imports heavy libraries only where it needs them.
"""

__version__ = "0.1.0"

STRUCTURES: dict[int, str] = {1: "left ventricular cavity", 2: "myocardium", 3: "left atrium cavity"}
"""Label value to structure name, the words of CAMUS and of the paper."""

VIEWS: tuple[str, ...] = ("2CH", "4CH")
PHASES: tuple[str, ...] = ("ED", "ES")
QUALITIES: tuple[str, ...] = ("good", "medium", "poor")
SPLITS: tuple[str, ...] = ("train", "val", "test")
