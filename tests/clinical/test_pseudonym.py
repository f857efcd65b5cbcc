"""Names of cases: the same for the same key, irreversible without it; one key, readable by its owner
alone."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import phantoms
import pytest
from phantoms import affine_of, write_mr, write_pet

from mmif_trt.cli import main
from mmif_trt.clinical import pseudonym
from mmif_trt.image import InputError

SHAPE = (8, 32, 24)


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    assert pseudonym.key_in(tmp_path / "out", make=False) is None and not (tmp_path / "out").exists()
    code = "import pathlib, sys; from mmif_trt.clinical import pseudonym as p; "
    code += "print(p.key_in(pathlib.Path(sys.argv[1])).hex())"
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    assert len({racer.communicate()[0] for racer in racers}) == 1, "six at once get one key"
    file = tmp_path / pseudonym.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and [p.name for p in tmp_path.iterdir()] == [file.name]
    key = pseudonym.key_in(tmp_path)
    assert key == bytes.fromhex(file.read_text()) and len(key) == 32
    assert pseudonym.key_in(tmp_path / "other", str(file)) == key and not (tmp_path / "other").exists()
    for text in ("", "zz" * 32, "00" * 31):
        file.write_text(text)
        with pytest.raises(InputError, match="hex digits"):
            pseudonym.key_in(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        pseudonym.key_in(tmp_path, str(tmp_path / "none"))


def test_a_dictionary_of_patients_does_not_reverse_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has every identifier and knows how names are made, but not the key, finds none of them."""
    root = tmp_path / "root"
    write_mr(root / "mr", affine_of(shape=SHAPE), SHAPE)
    write_pet(root / "pt", affine_of(shape=SHAPE), SHAPE)

    def planned(out: str, *more: str) -> str:
        capsys.readouterr()
        assert main(["batch", str(root), "-o", str(tmp_path / out), "--dry-run", *more]) == 0
        shown = capsys.readouterr()
        has_key = bool(more) or (tmp_path / out / ".pseudonym-key").exists()
        assert ("the names are temporary" in shown.err) != has_key
        return shown.out

    assert main(["batch", str(root), "-o", str(tmp_path / "one"), "--quiet"]) == 0
    (file,) = (tmp_path / "one").glob("*.json")
    one = file.stem
    assert planned("one").startswith(f"{one}: ") and "(done)" in planned("one")
    assert (
        planned("two").count("(to do)") == 1 and one not in planned("two") and "PLANTED" not in planned("two")
    )
    assert one in planned("two", "--pseudonym-key", str(tmp_path / "one" / pseudonym.FILE))
    known = [phantoms.PLANTED["PatientID"], phantoms.STUDY, phantoms.FRAME]
    group = "\0".join([known[0], "", known[1], known[2]])
    for text in (*known, group):
        assert hashlib.sha256(text.encode()).hexdigest()[:8] not in one
        assert pseudonym.name_of(b"", text, 8) not in one
    key = pseudonym.key_in(tmp_path / "one")
    assert key is not None and one.startswith(pseudonym.name_of(key, group, 12)), "the owner of the key can"
