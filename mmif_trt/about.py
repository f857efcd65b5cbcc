"""What every output and every page says about this software. setup reads VERSION from here."""

VERSION = "0.1.0"
RESEARCH_USE = "For research use only: not a medical device, not for diagnosis or treatment."
