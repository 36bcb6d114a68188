"""The project's own products for a CPU: C for processors with AVX2 or AVX-512, built when the package is installed."""
