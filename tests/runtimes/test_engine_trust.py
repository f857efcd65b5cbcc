"""An engine is native code: whose it is, who could have changed it, and whether its manifest is signed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_engine import engine

from mmif_trt import cli
from mmif_trt.image import InputError
from mmif_trt.runtimes.trt import build, engine_file, trust, verify


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        build, "installed", lambda: SimpleNamespace(__name__="tensorrt_rtx", __version__="1.0")
    )
    monkeypatch.delenv(trust.KEY, raising=False)
    old = os.umask(0)
    try:
        return engine(tmp_path / "engines" / "x.engine")
    finally:
        os.umask(old)


def load(path: Path) -> None:
    engine_file.load_checked(path, "tensorrt_rtx", "1.0", "8.9")


def test_what_we_write_is_ours_whatever_the_umask(path: Path) -> None:
    load(path)
    verify.files(path)
    assert path.parent.stat().st_mode & 0o077 == 0 and path.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("name", ["", "x.engine", "x.engine.json"])
def test_what_others_may_write_is_not_run(path: Path, name: str) -> None:
    changed = path.parent / name
    for mode, words in ((0o777, "mode 777"), (0o722, "mode 722")):
        os.chmod(changed, mode)
        with pytest.raises(InputError, match=f"{words}, others may write it; expected .*chmod go-w"):
            load(path)
        with pytest.raises(InputError, match="others may write it"):
            verify.files(path)
    os.chmod(changed, 0o755)
    load(path)


def test_a_link_does_not_hide_where_it_lies(path: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir(mode=0o700)
    for name in (path.name, f"{path.name}.json"):
        (linked / name).symlink_to(path.parent / name)
    load(linked / path.name)
    os.chmod(path.parent, 0o777)
    with pytest.raises(InputError, match="others may write it"):
        load(linked / path.name)


def test_an_engine_of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust.os, "geteuid", lambda: 4711)
    if path.stat().st_uid:
        with pytest.raises(InputError, match="owned by user .*; expected this user or root"):
            load(path)
    else:
        load(path)  # root's is everybody's
        os.chown(path.parent, 4712, 4712)
        with pytest.raises(InputError, match="owned by user 4712; expected this user or root"):
            load(path)


def test_with_a_key_only_what_it_signed_is_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 2 + "\n")
    os.chmod(key, 0o600)
    monkeypatch.setenv(trust.KEY, str(key))
    with pytest.raises(
        InputError, match=r"x\.engine: no signature; expected one by the key in \$MMIF_ENGINE_KEY"
    ):
        load(path)
    engine(path)
    load(path)
    verify.files(path)
    manifest = path.with_name("x.engine.json")
    table = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**table, "psnr_db": 99.0}))
    with pytest.raises(InputError, match="another signature"):
        load(path)
    engine(path)
    key.write_text("f" * 32)
    with pytest.raises(InputError, match="another signature"):
        verify.files(path)
    for text, mode, words in (("short", 0o600, "5 bytes"), ("f" * 32, 0o644, "readable by others")):
        key.write_text(text)
        os.chmod(key, mode)
        with pytest.raises(InputError, match=f"{words}; expected 32 bytes or more, mode 0600"):
            load(path)
    key.unlink()
    with pytest.raises(InputError, match="No such file"):
        load(path)


def test_verify_compares_versions(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        build, "installed", lambda: SimpleNamespace(__name__="tensorrt_rtx", __version__="1.1")
    )
    assert cli.main(["engine", "verify", str(path)]) == 2
    said = capsys.readouterr().err
    assert "built by tensorrt_rtx 1.0; this installation loads tensorrt_rtx 1.1" in said
    assert said.count("\n") == 1
