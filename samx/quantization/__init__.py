"""INT8: the data it is calibrated with, and the prompts it is judged on."""
