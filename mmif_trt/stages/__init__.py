"""What happens to pixels between file and network, one stage per module; a stage knows `Image` alone."""
