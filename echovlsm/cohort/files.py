"""The files of a cohort, one by one: images and masks in NIfTI or MetaImage, and the cfg beside them.

Each is read whole or refused with one error that names it. Sources: the two releases of CAMUS (Leclerc et al.
2019, doi 10.1109/TMI.2019.2900516), the NIfTI-1 standard and ITK's MetaImage format.
"""

import gzip
import io
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MARK = b"EchoVLSM"  # in the header of every image that write_cohort writes
NIFTI: tuple[str, ...] = (".nii.gz", ".nii")
"""Ends of the names of NIfTI files, the release's own first; whether a file is compressed it says itself."""
_NIFTI_BYTES = 348
_GZIP = b"\x1f\x8b"
_MM: dict[str, float] = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_MM |= {"cm": 10.0, "um": 0.001}  # as MetaImage calls them
PIXEL_MM: tuple[float, float] = (0.02, 3.0)
"""Sides in mm that a pixel of an ultrasound image may have where the header names no unit."""
_RESAMPLED = 10.0  # a named unit is believed for an image that was made so much coarser or finer
ROUNDING = 1e-3
"""Values so close to a whole number are that number: a header's scale factor is a rounded float32."""
_MET_BYTES = {"MET_UCHAR": 1, "MET_CHAR": 1, "MET_USHORT": 2, "MET_SHORT": 2, "MET_UINT": 4, "MET_INT": 4}
_MET_BYTES |= {"MET_FLOAT": 4, "MET_DOUBLE": 8}


class CohortError(ValueError):
    """A cohort, or one of its files, cannot be used; the message names it and the remedy."""


class RangeError(CohortError):
    """A file could be decoded, but its values are none that an image or a mask may have."""


class Header(NamedTuple):
    """Size of the upright image in pixels; its spacing in mm (None: not given, or not to be believed, and
    then `doubt` says why); mm stated; our mark."""

    height: int
    width: int
    spacing_y: float | None
    spacing_x: float | None
    in_mm: bool
    by_us: bool
    doubt: str | None = None


def mhd_data_file(path: Path) -> tuple[Path, dict[str, str]]:
    """The one data file of a MetaImage header and the header's fields; CohortError if it lies elsewhere."""
    fields: dict[str, str] = {}
    for line in path.read_bytes()[:65536].decode("latin-1").splitlines():
        key, _, value = line.partition("=")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    name = fields.get("ElementDataFile", "")
    if not name:
        raise CohortError(f"{path}: no ElementDataFile; not a whole MetaImage header, copy it again")
    # A header is only text: it could name any file of the computer, a list of files or a pattern.
    if name in (".", "..", "LIST", "LOCAL") or re.search(r"[\\/:%]|\s", name):
        raise CohortError(f"{path}: ElementDataFile {name!r} is not one file in the same folder; refused")
    data = path.parent / name
    if not data.is_file():
        raise CohortError(f"{data}: named by {path.name}, but missing; copy it again")
    if data.resolve().parent not in (path.resolve().parent, path.parent.resolve()):
        raise CohortError(f"{path}: ElementDataFile {name!r} leads out of its folder; refused")
    return data, fields


def _unreadable(path: Path, error: Exception) -> CohortError:
    return CohortError(f"{path}: cannot be read ({type(error).__name__}: {error}); copy it again")


def read_header(path: Path) -> Header:
    """Size and spacing of a NIfTI or .mhd image, undecoded; CohortError if broken, truncated or coloured."""
    try:
        header = _mhd_header(path) if path.suffix == ".mhd" else _nifti_header(path)
    except CohortError:
        raise
    except Exception as error:  # the decoders raise a dozen kinds
        raise _unreadable(path, error) from error
    if min(header.height, header.width) < 1:
        raise CohortError(f"{path}: the image is empty; copy it again")
    return header


def _spacing(sides: tuple[float, float], unit: str | None) -> tuple[float | None, float | None, str | None]:
    """The two sides of a pixel in mm, None where the header does not give them, and what is wrong with them.

    1.0 x 1.0 is what a header holds when nobody knew; only of mm the caller has to tell whether it is meant.
    """
    if not all(math.isfinite(side) and side > 0 for side in sides) or (sides == (1.0, 1.0) and unit != "mm"):
        return None, None, None
    factor = _MM.get(unit or "", 1.0)
    # 308 times 0.001 is not 0.308: to the decimal that is meant
    first, second = sides if factor == 1 else (float(f"{side * factor:.9g}") for side in sides)
    low, high = PIXEL_MM
    if unit in _MM:
        low, high = low / _RESAMPLED, high * _RESAMPLED
    if low <= min(first, second) and max(first, second) <= high:
        return first, second, None
    named = f"the unit {unit}" if unit in _MM else "no unit"
    doubt = (
        f"its header gives a pixel of {sides[0]:g} x {sides[1]:g} and {named}; only {low:g} to {high:g} mm "
        "can be believed, so that the size counts as unknown"
    )
    return None, None, doubt


def _nifti_header(path: Path) -> Header:
    import nibabel

    # A cohort has thousands of these: a kilobyte holds the header, and a second look at the file its length.
    with path.open("rb") as raw:
        start = raw.read(1024)
        length = raw.seek(0, os.SEEK_END)
        packed = start.startswith(_GZIP)
        if packed:
            start = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(start, _NIFTI_BYTES)
            raw.seek(-4, os.SEEK_END)  # gzip ends with the uncompressed size
            length = int.from_bytes(raw.read(4), "little")
    if packed and len(start) < _NIFTI_BYTES:  # an unusual compression, or a file cut off: then this says so
        with gzip.open(path, "rb") as stream:
            start = stream.read(_NIFTI_BYTES)
    head = nibabel.Nifti1Header(start[:_NIFTI_BYTES], check=False)
    if not bytes(head["magic"]).startswith(b"n+1"):
        raise CohortError(f"{path}: not a single-file NIfTI image; copy it again")
    shape, values = head.get_data_shape(), head.get_data_dtype()
    if values.kind not in "iuf":
        raise CohortError(
            f"{path}: its values are of the type {head.get_value_label('datatype')}; one number a pixel is "
            "needed, export it in grey"
        )
    if len(shape) < 2 or any(n != 1 for n in shape[2:]):
        raise CohortError(f"{path}: has the shape {shape}; one 2-D image is needed, export one frame in grey")
    size = int(head["vox_offset"]) + math.prod(shape) * values.itemsize
    whole = length == size % 2**32 if packed else length >= size
    if packed and not whole:  # not proof, since a gzip file may have several members
        with gzip.open(path, "rb") as stream:
            whole = len(stream.read()) >= size
    if not whole:
        raise CohortError(f"{path}: truncated; copy it again")
    ours = bytes(head["descrip"]).startswith(MARK)
    try:
        unit = head.get_xyzt_units()[0]
    except KeyError:  # a code without a meaning
        unit = None
    # float32 to the shortest decimal that means it: 0.308, not 0.30799999833106995
    x, y = (float(str(np.float32(side))) for side in head["pixdim"][1:3])
    *spacing, doubt = _spacing((y, x), unit)
    return Header(shape[1], shape[0], *spacing, unit == "mm", ours, doubt)


def _mhd_header(path: Path) -> Header:
    import SimpleITK as sitk  # noqa: N813

    data, fields = mhd_data_file(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size, spacing = reader.GetSize(), reader.GetSpacing()
    if any(n != 1 for n in size[2:]) or reader.GetNumberOfComponents() != 1:
        raise CohortError(
            f"{path}: has the size {size}, {reader.GetNumberOfComponents()} values a pixel; one 2-D image is "
            "needed, export one frame in grey"
        )
    item = _MET_BYTES.get(fields.get("ElementType", ""))
    # ITK fills what is missing of a cut raw file without an error, so measure it here.
    if item and fields.get("CompressedData", "False").lower() != "true":
        needed = math.prod(size) * item
        if data.stat().st_size < needed:
            raise CohortError(f"{data}: truncated, {data.stat().st_size} of {needed} bytes; copy it again")
    unit = fields.get("DistanceUnits")
    *sides, doubt = _spacing((spacing[1], spacing[0]), unit)
    return Header(size[1], size[0], *sides, unit == "mm", False, doubt)


def decode(path: Path, top: int) -> np.ndarray:
    """Decode an image (top 255) or mask (top 3): uint8 (H, W), upright, apex at the top.

    NIfTI axes are (x, y), so the array is transposed; the affine diag(-, -, +) is the same in every file of
    the release and says nothing about which way is up, so it is not applied.

    Raises
    ------
    CohortError
        The file cannot be read, or is not one image.
    RangeError
        A value is, but for `ROUNDING`, no whole number in 0..top.
    """
    header = read_header(path)
    scaling = None
    try:
        if path.suffix == ".mhd":
            import SimpleITK as sitk  # noqa: N813

            values = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="MetaImageIO"))
            values = values.reshape(header.height, header.width)
        else:
            import nibabel

            packed = path.read_bytes()
            # to its end: this also verifies the checksum
            content = io.BytesIO(gzip.decompress(packed) if packed.startswith(_GZIP) else packed)
            head = nibabel.Nifti1Header.from_fileobj(content)
            values = np.asarray(head.data_from_fileobj(content))
            scaling = head.get_slope_inter()
            values = values.reshape(header.width, header.height, order="F").T
    except Exception as error:  # the decoders raise a dozen kinds
        raise _unreadable(path, error) from error
    if not np.isfinite(values).all():
        raise RangeError(f"{path}: holds values that are not finite (NaN or infinity); export it again")
    whole = np.rint(values) if values.dtype.kind == "f" else values
    rounded = 0.0 if whole is values else np.abs(values - whole).max()
    if rounded > ROUNDING or whole.min() < 0 or whole.max() > top:
        raise RangeError(f"{path}: {_wrong_values(values, top, scaling)}")
    return np.ascontiguousarray(whole.astype(np.uint8))


def listed(values: np.ndarray) -> str:
    """The different values of an array, the first eight of them."""
    found = np.unique(values)
    return ", ".join(f"{value:.6g}" for value in found[:8]) + (", ..." if len(found) > 8 else "")


def _wrong_values(values: np.ndarray, top: int, scaling: tuple[float | None, float | None] | None) -> str:
    """What is wrong with values that are not whole numbers in 0..top, and what to do."""
    what = "labels" if top == 3 else "grey values"
    told = f"values from {values.min():g} to {values.max():g}, expected {what} 0-{top}"
    if scaling not in (None, (None, None), (1.0, 0.0)):
        return (
            f"{told}; the scale factor {scaling[0]:g} and the intercept {scaling[1]:g} of its header give "
            f"{listed(values)}; export whole numbers without a scale factor"
        )
    factor = _factor(values, top)
    if factor is not None:
        if factor == values.max():
            return (
                f"{told}; {factor:g} looks like one structure, which one is not said: store its label instead"
            )
        return f"{told}; {listed(values)} look like {what} times {factor:.6g}: divide them by that"
    if not np.array_equal(values, np.rint(values)):
        return f"values are not whole numbers ({listed(values)}); export it without interpolation"
    return f"{told}; correct the file"


def _factor(values: np.ndarray, top: int) -> float | None:
    """What labels or grey values have likely been multiplied by; None where nothing fits.

    Labels are spread over 0-255 to be seen, or brought to 0-1; one structure alone is often 255. Grey values
    come as 0-1 or as 16 bits.
    """
    found = np.unique(values).astype(float)
    high = found[-1]
    for factor in (high, high / 2, high / 3) if top == 3 else (1 / 255, 256.0, 257.0):
        whole = np.rint(found / factor) if factor > 0 else found
        slack = 1.0 if factor >= 20 and top == 3 else ROUNDING * min(1.0, factor)  # spread values are rounded
        if found[0] >= 0 and whole[-1] <= top and np.abs(found - whole * factor).max() <= slack:
            return None if factor == high < 10 else factor
    return None


CFG_VALUES = {
    "Sex": ("F|M", "F or M"),
    "Age": (r"\d{1,2}|1[01]\d|120", "whole years, 0 to 120"),
    "ImageQuality": ("(?i:good|medium|poor)", "Good, Medium or Poor"),
    **dict.fromkeys(("ED", "ES", "NbFrame"), (r"\d+", "a whole number")),
    **dict.fromkeys(("EF", "FrameRate"), (r"\d+(\.\d+)?", "a number")),
}


def parse_cfg(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Sex ("F"/"M"), Age (int), ImageQuality (lower case) of an ``Info_{view}.cfg``, and what is wrong in it.

    A value that is wrong is left out, never corrected. Of the other keys only the form is checked.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"cannot be read as text: {error}"]
    found: dict[str, Any] = {}
    wrong: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not (key and colon and value):
            wrong.append(f"line {number} is not 'key: value': {line.strip()[:60]!r}")
        elif key in seen:
            wrong.append(f"line {number} gives {key} again")
            found.pop(key, None)
        elif key in CFG_VALUES and not re.fullmatch(CFG_VALUES[key][0], value):
            wrong.append(f"line {number}: {key} is {value!r}, expected {CFG_VALUES[key][1]}")
        elif key in ("Sex", "Age", "ImageQuality"):
            found[key] = {"Sex": str, "Age": int, "ImageQuality": str.lower}[key](value)
        seen.add(key)
    return found, wrong
