"""One module per command of `mmif-trt`; cli.py only dispatches."""
