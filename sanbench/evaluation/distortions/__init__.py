"""The functions behind CORRUPTIONS, by the benchmark's four groups, and the filters that they share.

Each takes an image, 3 x H x W float32 in [0, 1], the strength of a severity, and the generator of its random numbers. What
depends on more than one pixel is computed by NumPy, SciPy or per image by torch on one thread: the bits of the outcome do not
depend on the number of threads.
"""
