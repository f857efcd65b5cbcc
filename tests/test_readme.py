"""The README's Python runs; generated parts of it and of docs/ are up to date; links lead somewhere.

test_pages.py runs the commands and the Python of every page.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pages
import pytest
from conftest import REPO

from mmif_trt import weights

sys.path.append(str(REPO / "benchmarks"))
from flops import network_macs

README = (REPO / "README.md").read_text()


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_every_fence_is_known(page: Path) -> None:
    found = pages.blocks(page)
    assert len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) == 2 * len(found)
    assert {block.language for block in found} <= set(pages.KNOWN)


def test_the_readme_fuses_in_colour(tmp_path: Path) -> None:
    (code,) = [block.code for block in pages.blocks(REPO / "README.md") if block.language == "python"]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    fused = cv2.imread(str(tmp_path / "fused.png"), cv2.IMREAD_UNCHANGED)
    assert fused.shape == (256, 256, 3)


def test_the_readme_is_short() -> None:
    prose = re.sub(r"^\|.*$", "", README, flags=re.MULTILINE)
    assert len(prose.split()) <= 900


def test_shell_install_is_what_the_makefile_does() -> None:
    assert "--no-build-isolation -e '.[dev]'" in (REPO / "Makefile").read_text()
    training = (REPO / "docs/guides/training.md").read_text()
    assert "pip install --no-build-isolation -e '.[train]'" in training


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)", page.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", page.read_text())
    for target in (t for t in targets if not t.startswith("https://")):
        assert (page.parent / target).exists(), target


def test_option_tables_and_rooms_are_up_to_date() -> None:
    stale = [path for path, text in pages.tables().pages().items() if path.read_text() != text]
    assert not stale, "run: python docs/tables.py"


def test_every_option_says_what_it_is() -> None:
    """A help of its own for each option: none without, and none with the text of another."""
    from mmif_trt import cli

    for name, parser in pages.tables().parsers(cli._parser()):
        helps = [(a.option_strings or [a.dest], a.help) for a in parser._actions]
        assert not [option for option, text in helps if not text], name
        texts = [text for _, text in helps]
        assert not {text for text in texts if texts.count(text) > 1}, name


def test_numbers_in_prose_are_those_of_the_files() -> None:
    card = (REPO / "MODEL_CARD.md").read_text()
    told = re.findall(r"(\d+,\d+) parameters(?:, | and )(\d\.\d+) GMAC", card)
    for name, (parameters, gmac) in zip(weights.NAMES, told, strict=True):
        model = weights.manifest()["models"][name]
        assert int(parameters.replace(",", "")) == model["parameters"]
        assert f"{network_macs(model['config'], 256, 256) / 1e9:.2f}" == gmac
        file = weights.verified_path(name, "safetensors").read_bytes()
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        sizes = [entry["shape"] for key, entry in header.items() if key != "__metadata__"]
        assert sum(size_of(shape) for shape in sizes) == model["parameters"]


def test_the_lesions_kept_in_prose_are_those_measured() -> None:
    """In the model card, the changelog and the guide, for both networks."""
    sets = json.loads((REPO / "benchmarks/results/lesions.json").read_text())["sets"]
    kept = {
        name: [sets[one]["methods"][weights.title(name)]["lesions"] for one in sets] for name in weights.NAMES
    }
    means = {name: ", ".join(f"{one['mean']:.2f}" for one in found) for name, found in kept.items()}
    guide = (REPO / "docs/guides/pictures.md").read_text()
    assert all(f"| {mean} |" in guide for mean in means.values())
    changes = (REPO / "CHANGELOG.md").read_text()
    told = re.search(r"\(lesions kept: CT (\S+), PET (\S+), SPECT (\S+); `lagn` ([^)]*)\)", changes)
    assert told is not None and ", ".join(told.groups()[:3]) == means["lagn-quality"]
    assert told[4] == means["lagn"]
    card = (REPO / "MODEL_CARD.md").read_text()
    rows = re.findall(r"^\| (?:CT|PET|SPECT): lesions, mean.*", card, re.MULTILINE)
    for row, *found in zip(rows, *kept.values(), strict=True):
        cells = [cell.strip(" *") for cell in row.split("|")[2:4]]
        assert cells == [f"{one['mean']:.2f} ({one['worst']:.2f})" for one in found]


def test_what_the_diffusion_predicts_is_in_the_model_card_as_measured() -> None:
    sets = json.loads((REPO / "benchmarks/results/diffusion.json").read_text())["sets"]
    card = (REPO / "MODEL_CARD.md").read_text()
    found = {}
    for what, cells in re.findall(r"^\| (\w+ from \w+) \| (.*) \|$", card, re.MULTILINE):
        found[what] = [float(cell.strip(" *")) for cell in cells.split("|")]
    for name, one in sets.items():
        other = name.removeprefix("mri-")
        for what, key in (("{} from MRI", f"{other}_from_the_other"), ("MRI from {}", "mri_from_the_other")):
            # As rounded; the file has them in the order of the columns.
            assert found.pop(what.format(other.upper())) == [round(x, 1) for x in one[key].values()], what
    assert not found


def test_the_palettes_of_spect_are_compared_in_the_changelog_as_measured() -> None:
    spect = json.loads((REPO / "benchmarks/results/repainted.json").read_text())["sets"]["mri-spect"]
    kept, lost, before, lost_before = re.findall(
        r"lesions keep (\S+) of their detectability under it and (\d+) % are lost; "
        r"under HOT_METAL_BLUE (\S+) and (\d+) %",
        (REPO / "CHANGELOG.md").read_text(),
    )[0]
    for palette, *said in (("HOT_IRON", kept, lost), ("HOT_METAL_BLUE", before, lost_before)):
        row = spect[palette]["lagn"]
        assert said == [f"{row['lesions']:.2f}", f"{100 * row['lost']:.0f}"], palette


def size_of(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def test_the_card_table_is_what_the_builder_builds() -> None:
    from mmif_trt.runtimes.trt.build import RTX_CAPABILITIES

    page = (REPO / "docs/guides/console.md").read_text()
    assert tuple(re.findall(r"^\| (\d+\.\d) \|.*TensorRT-RTX", page, re.MULTILINE)) == RTX_CAPABILITIES
    commands = (REPO / "docs/reference/commands.md").read_text()
    assert f"default: {','.join(RTX_CAPABILITIES)};" in commands


def test_troubleshooting_quotes_messages_that_exist() -> None:
    """Each heading in code is in the source, line breaks of its strings aside."""
    page = (REPO / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^### (.*)$", page, re.MULTILINE)
    source = "".join(path.read_text() for path in sorted((REPO / "mmif_trt").rglob("*.py")))
    source = re.sub(r'"\s*f?"', "", source)
    for message in (m for heading in quoted for m in re.findall(r"`([^`]+)`", heading)):
        words = re.split(r"pydicom|nibabel|libcuda\.so\.1|No space left on device", message)
        assert all(part.strip(" ()") in source for part in words), message
