"""How much of a matrix is processed at a time: numbers that plans need before torch is imported."""

SLAB_BYTES = 8 * 2**20  # float32 bytes of one slab: large enough for GEMM, small compared with any memory limit
CACHED_BYTES = 2 * 2**20  # of a matrix that is multiplied from both sides: they stay in cache in between
NORM_CHUNK = 2**18  # values squared in float64 at a time: few enough to stay in cache
RESIDENT_BYTES = 512 * 2**20  # a matrix up to this many bytes is loaded into memory rather than read in each pass
