"""The three trainings, their data and losses, and how trained weights are released."""
