"""What must not leave the process: usage data of the libraries we import, and values of patients.

Both hold for the whole process, so that no call has to remember them: `import mmif_trt` switches usage data
off, the first module that names pydicom or pynetdicom silences what they say of a data set.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
import warnings

# Read by the libraries when they are imported. ONNX Runtime keeps a device id and a database of events in the
# user's cache folder; Ray reports clusters.
NO_USAGE_DATA = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}
# OpenVINO forks a process that looks up an analytics host at each import, and writes a client id into the
# user's home. It takes its own stub where this package cannot be imported.
USAGE_PACKAGES = ("openvino_telemetry",)
# Their warnings and loggers quote the values of data sets, or URLs with the UIDs of studies.
QUOTING = ("pydicom", "pynetdicom", "dicomweb_client", "urllib3")


def usage_data_off() -> None:
    """Before any other import. What the user's own code imported or set before stays as it is."""
    for name, value in NO_USAGE_DATA.items():
        os.environ.setdefault(name, value)
    for package in USAGE_PACKAGES:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]


def font_list_off() -> None:
    """Before matplotlib is imported by us: its list of fonts goes into a folder that ends with the process,
    not into the user's home. Who imported it before, or says where (MPLCONFIGDIR), keeps what is there."""
    if "matplotlib" not in sys.modules and "MPLCONFIGDIR" not in os.environ:
        folder = os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="mmif-fonts-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def patient_values_off() -> None:
    """No warning and no log record of the libraries that quote data sets, in this process; may be repeated.

    The filter goes by the module that a warning comes from, so warnings of others stay. Records go no
    further than the libraries' own loggers: who gives one of these a handler asks for what they say.
    """
    pattern = rf"({'|'.join(QUOTING)})(\.|$)"
    known = any(f[0] == "ignore" and f[3] and f[3].pattern == pattern for f in warnings.filters)
    if not known:
        warnings.filterwarnings("ignore", module=pattern)
    for name in QUOTING:
        # No level: pydicom sets its own when it is imported, which may be later.
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:  # without any, Python's handler of last resort would speak
            logger.addHandler(logging.NullHandler())
