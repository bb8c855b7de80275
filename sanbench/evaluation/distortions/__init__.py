"""The functions behind CORRUPTIONS, by the benchmark's four groups, and the filters that they share."""
