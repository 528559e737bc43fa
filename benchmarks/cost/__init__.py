"""How the cost model of the kernels is fitted to measurements, and checked against them."""
