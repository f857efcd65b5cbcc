"""All 63 fields malformed in every way, one study each, through the node: no value in anything it writes."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from peers import Node, needs, run_storescu, until
from phantoms import affine_of, write_mr, write_pet
from planted import MARK, NEEDED, OPTIONAL, WRONG, plant

SHAPE = (2, 20, 20)


@pytest.mark.nightly
def test_no_planted_value_leaves_the_node(tmp_path: Path) -> None:
    needs("storescu")
    node = Node(
        tmp_path / "node", 1, "--audit", str(tmp_path / "audit.log")
    )  # no PACS there: it keeps trying
    affine = affine_of(shape=SHAPE, spacing=(5.0, 6.0, 6.0))
    node.start()
    sent = refused = 0
    try:
        for number, (keyword, wrong) in enumerate((k, w) for k in (*OPTIONAL, *NEEDED) for w in WRONG):
            folder = tmp_path / "in" / str(number)
            uid = f"1.2.826.0.1.3680043.8.498.{number + 1}"
            ours = {"PatientName": f"{MARK}^JOHN", "PatientID": f"{MARK}{number}", "StudyInstanceUID": uid}
            write_mr(folder / "mr", affine, SHAPE, **ours)
            write_pet(folder / "pt", affine, SHAPE, **ours)
            for path in (folder / "pt").iterdir():
                dataset = pydicom.dcmread(path)
                plant(dataset, keyword, wrong.format(mark=MARK))
                dataset.save_as(path, enforce_file_format=False)
            done = run_storescu(node.port, folder)
            sent += done.returncode == 0
            refused += done.returncode != 0
        received = node.metric("instances_received_total")
        assert sent > 200 and received > 1000, (sent, refused, received)  # dcmtk itself refuses some UIDs
        until(lambda: node.metric("fusions_total") + node.metric("fusions_failed_total") > 200, 1200)
        said = node.log + node.web("/metrics").decode() + node.web("/health").decode()
        said += (tmp_path / "audit.log").read_text() + " ".join(str(x) for x in node.folder.rglob("*"))
        said += " ".join(x.read_text() for x in (node.folder / "spool" / "failed").iterdir())
        assert MARK not in said and "Traceback" not in said
    finally:
        assert node.stop() == 0
    print(f"{sent} studies sent, {refused} refused by storescu, {received:g} instances")
