"""The parts of a model: small classes over moekit.ops."""
