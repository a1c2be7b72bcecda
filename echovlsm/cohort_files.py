"""The files of a cohort, one by one: pictures and masks in NIfTI or MetaImage, and the cfg beside them.

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

MARK = b"EchoVLSM"  # in the header of every picture that write_cohort writes
_NIFTI_BYTES = 348
_MET_BYTES = {"MET_UCHAR": 1, "MET_CHAR": 1, "MET_USHORT": 2, "MET_SHORT": 2, "MET_UINT": 4, "MET_INT": 4}
_MET_BYTES |= {"MET_FLOAT": 4, "MET_DOUBLE": 8}


class CohortError(ValueError):
    """A cohort, or one of its files, cannot be used; the message names it and the remedy."""


class RangeError(CohortError):
    """A file could be decoded, but its values are none that a picture or a mask may have."""


class Header(NamedTuple):
    """Size of the upright picture in pixels, its spacing in mm (None: not given); mm stated; our mark."""

    height: int
    width: int
    spacing_y: float | None
    spacing_x: float | None
    in_mm: bool
    by_us: bool


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
    """Size and spacing of a .nii.gz or .mhd picture, undecoded; CohortError if broken or truncated."""
    try:
        header = _mhd_header(path) if path.suffix == ".mhd" else _nifti_header(path)
    except CohortError:
        raise
    except Exception as error:  # the decoders raise a dozen kinds
        raise _unreadable(path, error) from error
    if min(header.height, header.width) < 1:
        raise CohortError(f"{path}: the picture is empty; copy it again")
    return header


def _spacing(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) and value > 0 else None


def _nifti_header(path: Path) -> Header:
    import nibabel

    # A cohort has thousands of these: a kilobyte holds the header, and a second look at the file its length.
    with path.open("rb") as raw:
        start = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(raw.read(1024), _NIFTI_BYTES)
        raw.seek(-4, os.SEEK_END)
        told = int.from_bytes(raw.read(4), "little")
    if len(start) < _NIFTI_BYTES:  # an unusual compression, or a file cut off, and then this says so
        with gzip.open(path, "rb") as stream:
            start = stream.read(_NIFTI_BYTES)
    head = nibabel.Nifti1Header(start, check=False)
    if not bytes(head["magic"]).startswith(b"n+1"):
        raise CohortError(f"{path}: not a single-file NIfTI picture; copy it again")
    shape = head.get_data_shape()
    if len(shape) < 2 or any(n != 1 for n in shape[2:]):
        raise CohortError(f"{path}: has the shape {shape}; one 2-D picture is needed, export one frame")
    # gzip ends with the uncompressed size: a cut file shows without decompressing it.
    size = int(head["vox_offset"]) + math.prod(shape) * head.get_data_dtype().itemsize
    if told != size % 2**32:  # not proof, since a gzip file may have several members
        with gzip.open(path, "rb") as stream:
            if len(stream.read()) < size:
                raise CohortError(f"{path}: truncated; copy it again")
    ours = bytes(head["descrip"]).startswith(MARK)
    # float32 to the shortest decimal that means it: 0.308, not 0.30799999833106995
    spacing_x, spacing_y = (_spacing(float(str(np.float32(z)))) for z in head["pixdim"][1:3])
    return Header(shape[1], shape[0], spacing_y, spacing_x, head.get_xyzt_units()[0] == "mm", ours)


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
            f"{path}: has the size {size}; one 2-D picture of one channel is needed, export one frame"
        )
    item = _MET_BYTES.get(fields.get("ElementType", ""))
    # ITK fills what is missing of a cut raw file without an error, so measure it here.
    if item and fields.get("CompressedData", "False").lower() != "true":
        needed = math.prod(size) * item
        if data.stat().st_size < needed:
            raise CohortError(f"{data}: truncated, {data.stat().st_size} of {needed} bytes; copy it again")
    return Header(size[1], size[0], _spacing(spacing[1]), _spacing(spacing[0]), True, False)


def decode(path: Path, top: int) -> np.ndarray:
    """Decode a picture (top 255) or mask (top 3): uint8 (H, W), upright, apex at the top.

    NIfTI axes are (x, y), so the array is transposed; the affine diag(-, -, +) is the same in every file of
    the release and says nothing about which way is up, so it is not applied. Raises CohortError, and
    RangeError where a value is no whole number in 0..top.
    """
    header = read_header(path)
    try:
        if path.suffix == ".mhd":
            import SimpleITK as sitk  # noqa: N813

            values = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="MetaImageIO"))
            values = values.reshape(header.height, header.width)
        else:
            import nibabel

            with gzip.open(path, "rb") as stream:  # to its end: this also verifies the checksum
                content = io.BytesIO(stream.read())
            head = nibabel.Nifti1Header.from_fileobj(content)
            values = np.asarray(head.data_from_fileobj(content))
            values = values.reshape(header.width, header.height, order="F").T
    except Exception as error:  # the decoders raise a dozen kinds
        raise _unreadable(path, error) from error
    if not np.isfinite(values).all():
        raise RangeError(f"{path}: holds values that are not finite (NaN or infinity); export it again")
    low, high = values.min(), values.max()
    if low < 0 or high > top:
        expected = "labels 0-3" if top == 3 else "grey values 0-255"
        raise RangeError(f"{path}: values from {low:g} to {high:g}, expected {expected}; correct the file")
    whole = np.ascontiguousarray(values.astype(np.uint8))
    if not np.array_equal(whole, values):
        raise RangeError(f"{path}: values are not whole numbers; export it without interpolation")
    return whole


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
        lines = path.read_text(encoding="utf-8").splitlines()
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
