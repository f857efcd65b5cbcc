"""`python -m mmif_trt` is the command line."""

from mmif_trt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
