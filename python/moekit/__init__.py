"""moekit: mixture-of-experts kernels for CPUs, and whole models you can open while they run."""

__version__ = "0.1.0"
