"""The three trainings, their data and losses, and how trained weights are released."""

import importlib.util
import sys

_missing = [
    name for name in ("torch", "safetensors", "tensorboard") if importlib.util.find_spec(name) is None
]
if _missing:
    _words = f"mmif_trt.train: {', '.join(_missing)} not installed; try pip install 'mmif-trt[train]'"
    # `python -m mmif_trt.train.fusion` imports this first, and then a line says more than a traceback.
    raise SystemExit(_words) if sys.argv[:1] == ["-m"] else ImportError(_words)
