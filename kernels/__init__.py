"""The rungs of the selective scan: one self-contained file each, all with one signature.

scan_naive   a loop over the sequence in plain PyTorch: the one to read first, and the reference
scan_numba   the same on a CPU, compiled: 64 channels side by side, states kept only now and then
ss2d_numba   the kernels of scan_numba over a map, along its four routes
fork         whether this process may start threads

A rung imports nothing of the package and checks nothing: `minivmamba.selective_scan` validates
the arguments, brings them to one dtype and chooses the rung.
"""
