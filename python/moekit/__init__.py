"""moekit: mixture-of-experts kernels for CPUs, and whole models you can open while they run."""
