"""The contenders of bench/whole_model.py, and the checkpoints that they run."""
