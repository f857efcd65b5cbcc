"""How good a fused picture is: measures of one picture, and scores over folders."""
