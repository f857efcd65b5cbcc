"""BIDS: which files of a data set belong together, and where their fusion goes in a derived one.

Brain Imaging Data Structure 1.10, bids-specification.readthedocs.io: sub-<label>/[ses-<label>/]<datatype>/
<entities>_<suffix>.nii[.gz]. CT has no datatype there yet; its files are looked for in ct/.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmif_trt.about import RESEARCH_USE, VERSION
from mmif_trt.clinical.case import Case
from mmif_trt.files import read_regular
from mmif_trt.image import InputError
from mmif_trt.storage import Folder, Store

VERSION_OF_BIDS = "1.10.0"
DESCRIPTION = "dataset_description.json"
ANATOMY = ("T1w", "T2w", "FLAIR")  # the first that exists is A
OTHERS = {"pet": "pet", "ct": "ct"}  # datatype and suffix of B, its modality
# Beside the volumes are lumas, pages and logs, which BIDS does not define.
IGNORED = "*_luma.nii\n*_luma.nii.gz\n*.html\n*.log\n"
NAME = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?((?:_[a-z]+-[A-Za-z0-9+]+)*)_([A-Za-z0-9]+)")


@dataclass(frozen=True)
class File:
    """One image. entities: between session and suffix, such as "_acq-3d_run-1"."""

    path: str
    subject: str
    session: str
    entities: str
    suffix: str

    @property
    def is_part(self) -> bool:
        """The phase, or the real or imaginary part, of a complex image: not its magnitude."""
        return re.search(r"_part-(phase|real|imag)(_|$)", self.entities) is not None


def is_dataset(root: str) -> bool:
    """Whether a folder is a BIDS data set, by its description."""
    return os.path.isfile(os.path.join(root, DESCRIPTION))


def files_of(folder: Path) -> list[File]:
    """The images in sub-*/[ses-*]/DATATYPE, by name; others are ignored."""
    found = []
    for path in sorted(folder.glob("*.nii*")):
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name)
        if stem != path.name and (parts := NAME.fullmatch(stem)):
            subject, session, entities, suffix = parts.groups()
            found.append(File(str(path), subject, session or "", entities, suffix))
    return found


def refuse_output(store: Store, suffix: str, root: str) -> None:
    """Raises InputError if `store` or the format cannot be a data set derived from `root`."""
    if not isinstance(store, Folder):
        raise InputError(
            f"-o {store.where('')}: a bucket; expected a folder, because {root} is a BIDS data set"
        )
    if suffix == ".dcm":
        raise InputError("--format dcm: not allowed by BIDS; expected nii or nii.gz")
    if os.path.realpath(root) == os.path.realpath(store.root):
        raise InputError(
            f"-o {store.root}: the data set itself; expected another folder, such as {root}/derivatives/NAME"
        )


def cases(root: str, across: bool = False, part: tuple[int, int] = (1, 1)) -> Iterator[Case | str]:
    """Cases in the order of subjects and sessions, and what is left out and why. part: (I, N), of every N-th
    subject from the I-th on.

    Every PET and CT is paired with the MRI of its session: T1w before T2w before FLAIR, then by name. across:
    if its session has none, with that of the subject's first session that has one (to be registered).
    """
    for subject in islice(sorted(Path(root).glob("sub-*")), part[0] - 1, None, part[1]):
        sessions = sorted(subject.glob("ses-*")) or [subject]
        taken: dict[str, str] = {}
        anatomy = {session: _anatomy(files_of(session / "anat")) for session in sessions}
        for session in sessions:
            mri, where = anatomy[session], session
            if mri is None and across:
                mri, where = next(((one, at) for at, one in anatomy.items() if one), (None, session))
            others = [one for kind in OTHERS for one in files_of(session / kind) if one.suffix == kind]
            for one in others:
                if mri is None:
                    yield f"{one.path}: no T1w, T2w or FLAIR of its session"
                    continue
                name = name_of(mri, one)
                if first := taken.get(name):  # .nii beside .nii.gz, say
                    yield f"{one.path}: its fusion would have the name of that with {first}"
                    continue
                taken[name] = one.path
                words = f"{mri.path} + {one.path}" + ("" if where == session else ", of another session")
                modality = OTHERS[one.suffix]
                yield Case(name, (mri.path,), (one.path,), {"modality_b": modality}, words=words)
            if mri is not None and where == session and not others:
                yield f"{mri.path}: no PET or CT of its session"


def _anatomy(files: list[File]) -> File | None:
    ranked = [one for suffix in ANATOMY for one in files if one.suffix == suffix and not one.is_part]
    return ranked[0] if ranked else None


def name_of(mri: File, other: File) -> str:
    """The MRI's name with a desc- of the other's modality and entities: sub-1_desc-fusedpettrcFDG_T1w."""
    kept = re.sub(r"_desc-[A-Za-z0-9+]+", "", mri.entities)
    what = re.sub(r"[^A-Za-z0-9]", "", other.entities)
    session = f"_{other.session or mri.session}" if other.session or mri.session else ""
    return f"{mri.subject}{session}{kept}_desc-fused{other.suffix}{what}_{mri.suffix}"


def folder_of(name: str) -> str:
    """The place of a name of `name_of` in its data set. Raises InputError for any other name."""
    parts = NAME.fullmatch(name)
    if parts is None:
        raise InputError(f"{name}: not a BIDS name; expected sub-<label>[_ses-<label>][_<entities>]_<suffix>")
    return "/".join(filter(None, (parts[1], parts[2], "anat")))


def sidecar(case: Case, root: str) -> dict[str, Any]:
    """The sidecar that BIDS requires of a derived image, beside our record."""
    sources = [f"bids:raw:{os.path.relpath(path, root)}" for path in (*case.a, *case.b)]
    what = str(case.own.get("modality_b", "another volume")).upper()
    return {
        "Description": f"MRI fused with {what}. {RESEARCH_USE}",
        "Sources": sources,
        "SkullStripped": _is_stripped(case.a[0]),
    }


def _is_stripped(path: str) -> bool:
    """SkullStripped by the MRI's own sidecar; raw images are not."""
    try:
        told = json.loads(read_regular(re.sub(r"\.nii(\.gz)?$", ".json", path)))
        return told.get("SkullStripped") is True
    except (InputError, OSError, ValueError, AttributeError):
        return False


def describe(store: Folder, root: str) -> None:
    """The derived data set's description and the files that validators should ignore, unless they exist.
    Raises OutputError."""
    link = os.path.relpath(os.path.realpath(root), os.path.realpath(store.root))
    text = {
        "Name": "MRI fused with PET or CT",
        "BIDSVersion": VERSION_OF_BIDS,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "mmif-trt", "Version": VERSION, "Description": RESEARCH_USE}],
        "DatasetLinks": {"raw": link},
    }
    store.create(DESCRIPTION, (json.dumps(text, indent=1) + "\n").encode())
    store.create(".bidsignore", IGNORED.encode())
    store.create("README", f"MRI fused with PET or CT by mmif-trt {VERSION}. {RESEARCH_USE}\n".encode())
