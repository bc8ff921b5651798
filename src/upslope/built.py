"""Whether the part in C++ was built; everything goes on without it where there was no compiler."""

try:
    import upslope._native  # noqa: F401

    BUILT = True
except ImportError:
    BUILT = False
